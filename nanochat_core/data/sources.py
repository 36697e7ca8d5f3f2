"""The user's own text: which files a source means, what identifies them, what is held out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from nanochat_core.data.near_duplicates import stable_hash
from nanochat_core.data.recipes import FileDigest, FilesSource
from nanochat_core.data.text_files import (
    COMPRESSIONS,
    FORMATS,
    FORMATS_IN_WORDS,
    PLAIN_FORMATS,
    documents_of,
    open_binary,
    read_block,
    shown,
    suffix_of,
)
from nanochat_core.errors import DataError

BLOCK_DOCUMENTS = 20
"""Neighbouring documents are often one text: whole blocks of them are held out together."""

NEEDED_DOCUMENTS = 2 * BLOCK_DOCUMENTS
MAX_LOOKED_INTO = 200
"""Files of which the first documents are read before the run starts; the rest wait for it."""
_MAGIC = "*?["


@dataclass(frozen=True)
class SourceFile:
    """A file to read, and its name relative to what the user gave."""

    path: str
    name: str


def _filesystem(path: str) -> tuple[Any, str]:
    if not path.strip():
        raise DataError("a source is empty text; expected a file, folder, glob or URL")
    try:
        return fsspec.core.url_to_fs(os.path.expanduser(path))  # type: ignore[no-any-return]
    except Exception as error:
        raise DataError(f"cannot open the source {path}: {error}; check its spelling") from error


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
    """Files of a known format that are not hidden, in the order of their relative names.

    Of a file and its compressed copy only the file.
    """
    names = {path: PurePosixPath(_relative(path, root)) for path in paths}
    wanted = [
        path
        for path, name in names.items()
        if suffix_of(path) in FORMATS and not any(part.startswith(".") for part in name.parts)
    ]
    copies = {path + packed for path in wanted for packed in COMPRESSIONS}
    wanted = [path for path in wanted if path not in copies]
    return sorted(wanted, key=lambda path: names[path].as_posix())


def _matches(given: str) -> list[SourceFile]:
    files, path = _filesystem(given)
    try:
        if files.isfile(path):
            if suffix_of(path) not in FORMATS:
                raise DataError(
                    f"cannot read {given}: expected a name that ends in one of {FORMATS_IN_WORDS}"
                )
            return [SourceFile(files.unstrip_protocol(path), PurePosixPath(path).name)]
        if files.isdir(path):
            found, root = _readable(files.find(path), path), path
        elif any(sign in path for sign in _MAGIC):
            root = _root_of_pattern(path)
            matched = [match for match in files.glob(path) if files.isfile(match)]
            found = _readable(matched, root)
        else:
            raise DataError(f"no such file or folder: {given}; check the path given to --source")
    except DataError:
        raise
    except Exception as error:  # object stores and web servers raise classes of their own
        raise DataError(
            f"cannot read {given}: {error}; check the address, its rights and the network"
        ) from error
    if not found:
        raise DataError(f"nothing matches {given}: expected {FORMATS_IN_WORDS} files")
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
        while chunk := read_block(stream, file.path):
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
                f"{shown(file.path)} changed since it was planned (sha256 was "
                f"{expected.sha256[:12]}); run again"
            )


def check_enough(num_documents: int, limit: int = 0) -> None:
    """Refuse (DataError) a source of too few documents to hold some out."""
    if num_documents >= NEEDED_DOCUMENTS:
        return
    if limit and limit == num_documents:
        raise DataError(
            f"shards.max_documents={limit} is too few: {NEEDED_DOCUMENTS} or more are needed, so "
            f"that a block of {BLOCK_DOCUMENTS} can be held out for validation"
        )
    found = f"{num_documents} document{'' if num_documents == 1 else 's'}"
    raise DataError(
        f"the source holds {found}; {NEEDED_DOCUMENTS} or more are needed, so that a block of "
        f"{BLOCK_DOCUMENTS} can be held out for validation: add text (a document is a row of "
        "jsonl or parquet, or up to 2,000 characters of txt or md)"
    )


def check_first_documents(
    files: Sequence[SourceFile], *, text_column: str, max_characters: int, min_characters: int = 0
) -> None:
    """Refuse (DataError) files whose beginning is no text, and a source with too little of it.

    Near-duplicates are not looked for here: that needs all of the text.
    """
    num_documents = 0
    for file in files[:MAX_LOOKED_INTO]:
        documents = documents_of(file.path, text_column=text_column, max_characters=max_characters)
        long_enough = (text for text in documents if len(text.strip()) >= min_characters)
        num_documents += sum(1 for _ in islice(long_enough, NEEDED_DOCUMENTS))
    if len(files) <= MAX_LOOKED_INTO:
        check_enough(num_documents)


def num_text_bytes(files: Sequence[SourceFile]) -> int | None:
    """Size of a source of local plain files; None where its text cannot be told from that."""
    paths = [Path(shown(file.path)) for file in files]
    if any(suffix_of(file.path) not in PLAIN_FORMATS for file in files):
        return None
    if not all(path.is_file() for path in paths):
        return None
    return sum(path.stat().st_size for path in paths)


def held_out_blocks(num_documents: int, percent: float) -> frozenset[int]:
    """Numbers of the blocks that are validation: the lowest `percent` by hash, at least one."""
    check_enough(num_documents)
    count = num_documents // BLOCK_DOCUMENTS
    by_hash = sorted(range(count), key=lambda number: stable_hash(f"validation block {number}"))
    return frozenset(by_hash[: max(1, round(count * percent / 100))])
