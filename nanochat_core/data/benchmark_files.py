"""Files of benchmarks: found in a folder at plan time, copied and verified by the station."""

from collections.abc import Collection
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path, PurePosixPath

import fsspec

from nanochat_core.config.job import StageOutput
from nanochat_core.data.recipes import BenchmarksRecipe, FileDigest
from nanochat_core.data.text_files import open_binary
from nanochat_core.errors import DataError
from nanochat_core.logs import Progress

COPY_BYTES = 1 << 20


def resolve_benchmark_files(folder: str, known: Collection[str]) -> BenchmarksRecipe:
    """What a folder (any fsspec URL) holds of the `known` file names, by sha256.

    Raises DataError for a folder that cannot be read, or holds none of them.
    """
    try:
        files, root = fsspec.core.url_to_fs(folder)
        paths = {PurePosixPath(path).name: path for path in files.ls(root, detail=False)}
    except Exception as error:  # object stores and web servers raise classes of their own
        raise DataError(
            f"cannot list the benchmarks in {folder}: {error}; give a folder that can be read"
        ) from error
    found = sorted(paths.keys() & set(known))
    if not found:
        raise DataError(
            f"{folder} holds no benchmark; expected files named like {', '.join(sorted(known)[:3])}"
        )
    return BenchmarksRecipe(files=tuple(_digest(folder, name) for name in found))


def copy_benchmark_files(
    recipe: BenchmarksRecipe, source: str, output: str, progress: Progress
) -> StageOutput:
    """Copy the planned files into the folder `output`; DataError when one has changed."""
    progress.total = len(recipe.files)
    for number, planned in enumerate(recipe.files, start=1):
        found = _digest(source, planned.name, copy_to=f"{output}/{planned.name}")
        if found != planned:
            raise DataError(
                f"{_path(source, planned.name)} changed since it was planned (sha256 was "
                f"{planned.sha256[:12]}, is {found.sha256[:12]}); run again"
            )
        progress.update(number, planned.name)
    return StageOutput(
        files={file.name: "result" for file in recipe.files},
        metrics={"files": len(recipe.files), "bytes": sum(file.bytes for file in recipe.files)},
    )


def _path(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _digest(folder: str, name: str, copy_to: str = "") -> FileDigest:
    """Name, sha256 and size of a file, which is copied on the way when a place is given."""
    hasher, size = sha256(), 0
    with ExitStack() as files:
        stream = files.enter_context(open_binary(_path(folder, name)))
        copy = files.enter_context(Path(copy_to).open("wb")) if copy_to else None
        while chunk := stream.read(COPY_BYTES):
            hasher.update(chunk)
            size += len(chunk)
            if copy is not None:
                copy.write(chunk)
    return FileDigest(name=name, sha256=hasher.hexdigest(), bytes=size)
