"""Files of benchmarks and of own conversations: found at plan time, copied by their station."""

import os
import re
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

import fsspec

from nanochat_core.config.job import StageOutput
from nanochat_core.data.recipes import BenchmarksRecipe, FileDigest
from nanochat_core.data.text_files import open_binary
from nanochat_core.errors import ConfigError, DataError
from nanochat_core.logs import Progress

COPY_BYTES = 1 << 20
OWN_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_EPOCHS = re.compile(r"(?P<place>.+)@(?P<epochs>[0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class OwnFile:
    """A file of own conversations: path or URL, and how often it is in the mixture."""

    place: str
    epochs: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "OwnFile":
        """`FILE`, or `FILE@EPOCHS` as in `me.jsonl@2`; ConfigError for another ending."""
        found = _EPOCHS.fullmatch(text.strip())
        place = os.path.expanduser(found["place"] if found else text.strip())
        epochs = float(found["epochs"]) if found else 1.0
        if not place.endswith(OWN_SUFFIXES) or epochs <= 0:
            raise ConfigError(
                f"conversations {text!r}: expected a file or URL that ends in one of "
                f"{', '.join(OWN_SUFFIXES)}, and after @ how often it is used, as in me.jsonl@2"
            )
        return cls(place, epochs)

    @property
    def name(self) -> str:
        """As it is called in the artifact."""
        return PurePosixPath(self.place).name


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
    return BenchmarksRecipe(files=tuple(_digest(_path(folder, name)) for name in found))


def resolve_own_files(own: Sequence[OwnFile], taken: Collection[str]) -> tuple[FileDigest, ...]:
    """Own conversations by sha256; ConfigError for a name that comes twice or is `taken`."""
    names = [file.name for file in own]
    for name in names:
        if names.count(name) > 1 or name in taken:
            whose = "twice among them" if name not in taken else "that of a published set"
            raise ConfigError(f"own conversations in {name}: the name is {whose}; rename the file")
    return tuple(_digest(file.place) for file in own)


def copy_benchmark_files(
    recipe: BenchmarksRecipe,
    source: str,
    output: str,
    progress: Progress,
    own: Sequence[OwnFile] = (),
) -> StageOutput:
    """Copy the planned files into the folder `output`; DataError when one has changed."""
    places = {file.name: file.place for file in own}
    progress.total = len(recipe.files)
    for number, planned in enumerate(recipe.files, start=1):
        place = places.get(planned.name) or _path(source, planned.name)
        found = _digest(place, copy_to=f"{output}/{planned.name}")
        if found != planned:
            raise DataError(
                f"{place} changed since it was planned (sha256 was "
                f"{planned.sha256[:12]}, is {found.sha256[:12]}); run again"
            )
        progress.update(number, planned.name)
    return StageOutput(
        files={file.name: "result" for file in recipe.files},
        metrics={"files": len(recipe.files), "bytes": sum(file.bytes for file in recipe.files)},
    )


def _path(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _digest(place: str, copy_to: str = "") -> FileDigest:
    """Name, sha256 and size of a file, which is copied on the way when a target is given."""
    hasher, size = sha256(), 0
    with ExitStack() as files:
        stream = files.enter_context(open_binary(place))
        copy = files.enter_context(Path(copy_to).open("wb")) if copy_to else None
        while chunk := stream.read(COPY_BYTES):
            hasher.update(chunk)
            size += len(chunk)
            if copy is not None:
                copy.write(chunk)
    return FileDigest(name=PurePosixPath(place).name, sha256=hasher.hexdigest(), bytes=size)
