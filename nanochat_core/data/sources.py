"""The user's own text: which files a source means, what identifies them, what is held out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

import fsspec

from nanochat_core.data.documents import Document
from nanochat_core.data.near_duplicates import stable_hash
from nanochat_core.data.recipes import FileDigest, FilesSource
from nanochat_core.data.text_files import FORMATS, documents_of, open_binary, suffix_of
from nanochat_core.errors import DataError
from nanochat_core.logs import Progress

BLOCK_DOCUMENTS = 20
"""Neighbouring documents are often one text: whole blocks of them are held out together."""

HASH_BYTES = 1 << 20
_MAGIC = "*?["


@dataclass(frozen=True)
class SourceFile:
    """A file to read, and its name relative to what the user gave."""

    path: str
    name: str


def _filesystem(path: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(path)  # type: ignore[no-any-return]
    except Exception as error:
        raise DataError(f"cannot open the source {path}: {error}") from error


def _relative(path: str, root: str) -> str:
    try:
        return PurePosixPath(path).relative_to(root).as_posix()
    except ValueError:
        return PurePosixPath(path).name


def _root_of_pattern(pattern: str) -> str:
    parts = PurePosixPath(pattern).parts
    plain = [part for part in parts if not any(sign in part for sign in _MAGIC)]
    first_magic = next(i for i, part in enumerate(parts) if any(sign in part for sign in _MAGIC))
    return str(PurePosixPath(*plain[:first_magic])) if first_magic else "."


def _readable(paths: Sequence[str], root: str) -> list[str]:
    """Files of a known format that are not hidden, in the order of their relative names."""
    names = {path: PurePosixPath(_relative(path, root)) for path in paths}
    wanted = [
        path
        for path, name in names.items()
        if suffix_of(path) in FORMATS and not any(part.startswith(".") for part in name.parts)
    ]
    return sorted(wanted, key=lambda path: names[path].as_posix())


def _matches(given: str) -> list[SourceFile]:
    files, path = _filesystem(given)
    try:
        if files.isfile(path):
            if suffix_of(path) not in FORMATS:
                raise DataError(f"cannot read {given}: expected one of {', '.join(FORMATS)}")
            return [SourceFile(files.unstrip_protocol(path), PurePosixPath(path).name)]
        if files.isdir(path):
            found, root = _readable(files.find(path), path), path
        elif any(sign in path for sign in _MAGIC):
            root = _root_of_pattern(path)
            matched = [match for match in files.glob(path) if files.isfile(match)]
            found = _readable(matched, root)
        else:
            raise DataError(f"no such file or folder: {given}")
    except OSError as error:
        raise DataError(f"cannot read {given}: {error}") from error
    if not found:
        raise DataError(f"nothing matches {given}: expected {', '.join(FORMATS)} files")
    return [SourceFile(files.unstrip_protocol(match), _relative(match, root)) for match in found]


def list_source(paths: Sequence[str]) -> list[SourceFile]:
    """Files behind the given paths, each once, in the order given and by name inside each."""
    if not paths:
        raise DataError("no source was given; expected files, folders, globs or URLs")
    found: dict[str, SourceFile] = {}
    for given in paths:
        for file in _matches(given):
            found.setdefault(file.path, file)
    return list(found.values())


def expand(paths: Sequence[str]) -> list[str]:
    """URLs of the files behind files, folders, globs and URLs, in the order they are read."""
    return [file.path for file in list_source(paths)]


def _digest(file: SourceFile) -> FileDigest:
    hasher, size = sha256(), 0
    with open_binary(file.path) as stream:
        while chunk := stream.read(HASH_BYTES):
            hasher.update(chunk)
            size += len(chunk)
    return FileDigest(name=file.name, sha256=hasher.hexdigest(), bytes=size)


def resolve_files_source(
    paths: Sequence[str], *, text_column: str = "text", max_document_characters: int = 2_000
) -> FilesSource:
    """The user's own text as a recipe: relative name, sha256 and size of every file."""
    digests = tuple(_digest(file) for file in list_source(paths))
    if not any(digest.bytes for digest in digests):
        raise DataError(f"every file of {', '.join(paths)} is empty; expected text")
    return FilesSource(
        files=digests, text_column=text_column, max_document_characters=max_document_characters
    )


def check_unchanged(source: FilesSource, files: Sequence[SourceFile]) -> None:
    """Refuse (DataError) files that are not those of the plan."""
    planned = [file.name for file in source.files]
    present = [file.name for file in files]
    if planned != present:
        differing = sorted(set(planned) ^ set(present)) or ["their order"]
        raise DataError(
            f"the source changed since it was planned: {', '.join(differing[:5])}; run again"
        )
    for file, expected in zip(files, source.files, strict=True):
        if _digest(file) != expected:
            raise DataError(
                f"{file.path} changed since it was planned (sha256 was {expected.sha256[:12]}); "
                "run again"
            )


def held_out_blocks(num_documents: int, percent: float) -> frozenset[int]:
    """Numbers of the blocks that are validation: the lowest `percent` by hash, at least one."""
    needed = 2 * BLOCK_DOCUMENTS
    if num_documents < needed:
        raise DataError(
            f"the source holds {num_documents} documents; {needed} or more are needed, so that "
            f"a block of {BLOCK_DOCUMENTS} can be held out for validation: add text"
        )
    count = num_documents // BLOCK_DOCUMENTS
    by_hash = sorted(range(count), key=lambda number: stable_hash(f"validation block {number}"))
    return frozenset(by_hash[: max(1, round(count * percent / 100))])


def read_source(
    source: FilesSource,
    paths: Sequence[str],
    *,
    validation_percent: float,
    max_documents: int,
    progress: Progress,
) -> Iterator[Document]:
    """Documents of the planned files in order; those of held-out blocks are marked.

    The files are read twice: once to count documents, since what is held out depends on it.
    """
    files = list_source(paths)
    check_unchanged(source, files)

    def texts() -> Iterator[str]:
        for file in files:
            yield from documents_of(
                file.path,
                text_column=source.text_column,
                max_characters=source.max_document_characters,
            )

    count = sum(1 for _ in texts())
    count = min(count, max_documents) if max_documents else count
    blocks = held_out_blocks(count, validation_percent)
    progress.total = count
    for number, text in zip(range(count), texts(), strict=False):
        yield Document(text, number // BLOCK_DOCUMENTS in blocks)
        progress.update(number + 1, f"{number + 1:,} of {count:,} documents")
