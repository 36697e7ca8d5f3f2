"""Documents out of one file of the user's own text: txt, md, jsonl or parquet."""

import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_core.errors import DataError

FORMATS = (".txt", ".md", ".jsonl", ".parquet")
READ_BATCH = 1_000
_COLUMN_REMEDY = "name the column of text with --set shards.source.text_column=NAME"


def suffix_of(path: str) -> str:
    """The lower-case suffix of a path or URL, which decides the format."""
    return PurePosixPath(path).suffix.lower()


def shown(path: str) -> str:
    """A path as people write it: local files without their protocol."""
    return path.removeprefix("file://")


def open_binary(path: str) -> BinaryIO:
    """Open a local path or URL; an error that names the file when that cannot be done."""
    try:
        return fsspec.open(path, "rb").open()  # type: ignore[no-any-return]
    except Exception as error:
        raise DataError(
            f"cannot read {shown(path)}: {error}; check the path and its rights"
        ) from error


def _lines(path: str) -> Iterator[str]:
    """Lines of a UTF-8 file without their line ends."""
    position = 0
    with open_binary(path) as file:
        for line in file:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{shown(path)} is not UTF-8: byte {position + error.start} is "
                    f"0x{line[error.start]:02x}; convert the file to UTF-8, or leave it out if "
                    "it is no text"
                ) from error
            if "\0" in text:
                raise DataError(
                    f"{shown(path)} holds a NUL byte at {position + text.index(chr(0))}: a binary "
                    "file, or text in UTF-16; leave it out, or convert it to UTF-8"
                )
            yield (text.removeprefix("\ufeff") if position == 0 else text).rstrip("\r\n")
            position += len(line)


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    gathered: list[str] = []
    for line in lines:
        if line.strip():
            gathered.append(line.rstrip())
        elif gathered:
            yield "\n".join(gathered)
            gathered = []
    if gathered:
        yield "\n".join(gathered)


def _cut(paragraph: str, limit: int) -> Iterator[str]:
    """Parts of at most `limit` characters, cut at a line end or space where there is one."""
    while len(paragraph) > limit:
        end = paragraph.rfind("\n", 1, limit + 1)
        if end < 0:
            end = paragraph.rfind(" ", 1, limit + 1)
        if end < 0:
            end = limit
        if part := paragraph[:end].rstrip():
            yield part
        paragraph = paragraph[end:].lstrip()
    if paragraph:
        yield paragraph


def split_text(lines: Iterator[str], max_characters: int) -> Iterator[str]:
    """Documents of whole paragraphs up to `max_characters`; only longer paragraphs are cut."""
    gathered: list[str] = []
    size = 0
    for paragraph in _paragraphs(lines):
        for part in _cut(paragraph, max_characters):
            if gathered and size + 2 + len(part) > max_characters:
                yield "\n\n".join(gathered)
                gathered, size = [], 0
            size += len(part) + (2 if gathered else 0)
            gathered.append(part)
    if gathered:
        yield "\n\n".join(gathered)


def _checked_text(value: object, place: str, column: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{place}: column {column!r} holds {type(value).__name__}; expected a string; "
            f"{_COLUMN_REMEDY}"
        )
    return value


def _json_documents(path: str, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{shown(path)}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: not JSON ({error}); expected one object a line") from error
        if not isinstance(record, dict) or column not in record:
            has = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise DataError(f"{place}: no column {column!r}; the line has {has}; {_COLUMN_REMEDY}")
        yield _checked_text(record[column], place, column)


def _parquet_documents(path: str, column: str) -> Iterator[str]:
    with open_binary(path) as raw:
        try:
            with pq.ParquetFile(raw) as file:
                names = file.schema_arrow.names
                if column not in names:
                    raise DataError(
                        f"{shown(path)} has no column {column!r}; it has {names}; {_COLUMN_REMEDY}"
                    )
                for batch in file.iter_batches(READ_BATCH, columns=[column]):
                    for value in batch.column(0).to_pylist():
                        if value is not None:
                            yield _checked_text(value, shown(path), column)
        except pa.ArrowException as error:
            raise DataError(
                f"{shown(path)} is not a readable parquet file: {error}; write it "
                "again, or leave it out"
            ) from error


def documents_of(path: str, *, text_column: str, max_characters: int) -> Iterator[str]:
    """Documents of one file in order; blank ones are left out.

    Plain text is split at blank lines into documents of up to `max_characters`; a row of jsonl
    or parquet is a document as it stands.
    """
    readers: dict[str, Callable[[], Iterator[str]]] = {
        ".jsonl": lambda: _json_documents(path, text_column),
        ".parquet": lambda: _parquet_documents(path, text_column),
    }
    plain = lambda: split_text(_lines(path), max_characters)  # noqa: E731
    for document in readers.get(suffix_of(path), plain)():
        if document.strip():
            yield document
