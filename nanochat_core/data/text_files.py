"""Documents out of one file of the user's own text: txt, md, jsonl or parquet.

The first three may be compressed (gz, zst). Files are read a megabyte at a time; nothing but one
document (or one row) is held whole.
"""

import json
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_core.errors import DataError

PLAIN_FORMATS = (".txt", ".md", ".jsonl")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Suffix after that of a plain format -> what pyarrow calls it."""
FORMATS = (
    *PLAIN_FORMATS,
    ".parquet",
    *(plain + packed for packed in COMPRESSIONS for plain in PLAIN_FORMATS),
)
FORMATS_IN_WORDS = ".txt, .md, .jsonl, .parquet, or of the first three with .gz or .zst"
READ_ROWS = 128
"""Rows of parquet in memory at once: a row can be a book."""
BLOCK_BYTES = 1 << 20
LONG_LINE = 1 << 16
"""Characters of a line of plain text that are looked at together."""
_COLUMN_REMEDY = "name the column of text with --set shards.source.text_column=NAME"


def suffix_of(path: str) -> str:
    """The lower-case suffix of a path or URL, which decides the format: .txt, .jsonl.gz."""
    *_, before, last = ("", "", *map(str.lower, PurePosixPath(path).suffixes))
    return before + last if last in COMPRESSIONS else last


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


def read_block(file: BinaryIO, path: str) -> bytes:
    """The next megabyte of an open file; an error that names the file when reading breaks off."""
    try:
        return file.read(BLOCK_BYTES)
    except Exception as error:  # object stores and web servers raise classes of their own
        raise DataError(
            f"reading {shown(path)} broke off: {error}; check the network or the disk, and run "
            "again"
        ) from error


@contextmanager
def _unpacked(path: str) -> Iterator[BinaryIO]:
    """A file open for reading, without its compression."""
    compression = COMPRESSIONS.get(PurePosixPath(path).suffix.lower())
    with open_binary(path) as raw:
        if compression is None:
            yield raw
            return
        with pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression) as file:
            yield file


def _unpacked_block(file: BinaryIO, path: str) -> bytes:
    if suffix_of(path) in PLAIN_FORMATS:
        return read_block(file, path)
    try:
        return file.read(BLOCK_BYTES)
    except Exception as error:  # of the compression, or of an object store or web server
        raise DataError(
            f"{shown(path)} cannot be unpacked: {error}; write it again, or leave it out, if it "
            "is damaged or cut off"
        ) from error


def _blocks(path: str) -> Iterator[str]:
    """Text of a UTF-8 file in order, up to a megabyte at a time, without a byte order mark."""
    decoder = getincrementaldecoder("utf-8")()
    position = 0
    with _unpacked(path) as file:
        while True:
            block = _unpacked_block(file, path)
            begin = position - len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{shown(path)} is not UTF-8: byte {begin + error.start} is "
                    f"0x{error.object[error.start]:02x}; convert the file to UTF-8, or leave it "
                    "out if it is no text"
                ) from error
            if "\0" in text:
                place = begin + len(text[: text.index("\0")].encode())
                raise DataError(
                    f"{shown(path)} holds a NUL byte at {place}: a binary file, or text in "
                    "UTF-16; leave it out, or convert it to UTF-8"
                )
            if text:
                yield text if begin else text.removeprefix("\ufeff")
            if not block:
                return
            position += len(block)


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """Whole lines without their line ends."""
    carried: list[str] = []
    for block in blocks:
        first, *others = block.split("\n")
        carried.append(first)
        if others:
            yield "".join(carried)
            yield from others[:-1]
            carried = others[-1:]
    if last := "".join(carried):
        yield last


def _pieces(blocks: Iterable[str]) -> Iterator[str]:
    """Lines with their line ends; of a long one all pieces but the last have no line end."""
    carried = ""
    for block in blocks:
        lines = (carried + block).split("\n")
        carried = lines.pop()
        for line in lines:
            if len(line) > LONG_LINE:
                whole = (len(line) - 1) // LONG_LINE * LONG_LINE
                yield from (line[i : i + LONG_LINE] for i in range(0, whole, LONG_LINE))
                line = line[whole:]
            yield line + "\n"
        if len(carried) > LONG_LINE:
            whole = (len(carried) - 1) // LONG_LINE * LONG_LINE
            yield from (carried[i : i + LONG_LINE] for i in range(0, whole, LONG_LINE))
            carried = carried[whole:]
    if carried:
        yield carried + "\n"


def _cut(text: str, limit: int) -> tuple[str, str]:
    """Up to `limit` characters, to a line end or space where there is one, and the rest."""
    end = text.rfind("\n", 1, limit + 1)
    if end < 0:
        end = text.rfind(" ", 1, limit + 1)
    if end < 0:
        end = limit
    return text[:end].rstrip(), text[end:].lstrip()


def _paragraph_parts(pieces: Iterable[str], limit: int) -> Iterator[str]:
    """Paragraphs in order, those over `limit` characters in parts; empty lines end them."""
    pending = ""
    is_cut = ends_line = False
    for piece in pieces:
        ended_line, ends_line = ends_line, piece.endswith("\n")
        text = piece.rstrip() if ends_line else piece
        if text:
            if pending:
                pending += "\n" + text if ended_line else text
            else:
                pending = text.lstrip() if is_cut else text
            while len(pending) > limit:
                part, pending = _cut(pending, limit)
                is_cut = True
                if part:
                    yield part
        elif ended_line:
            if pending.strip():
                yield pending
            pending, is_cut = "", False
    if pending.strip():
        yield pending


def split_text(blocks: Iterable[str], max_characters: int) -> Iterator[str]:
    """Documents of whole paragraphs up to `max_characters`; only longer paragraphs are cut.

    `blocks` is a text cut anywhere; where does not matter.
    """
    gathered: list[str] = []
    size = 0
    for part in _paragraph_parts(_pieces(blocks), max_characters):
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
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: character {error.start} of column {column!r} is half of a surrogate "
                f"pair (\\u{ord(value[error.start]):04x}), which is no text; write the file again "
                "from its origin, or leave the line out"
            ) from error
    return value


def _json_texts(path: str, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(_blocks(path)), start=1):
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


def _parquet_texts(path: str, column: str) -> Iterator[str]:
    with open_binary(path) as raw:
        try:
            with pq.ParquetFile(raw) as file:
                names = file.schema_arrow.names
                if column not in names:
                    raise DataError(
                        f"{shown(path)} has no column {column!r}; it has {names}; {_COLUMN_REMEDY}"
                    )
                for batch in file.iter_batches(READ_ROWS, columns=[column]):
                    for value in batch.column(0).to_pylist():
                        yield "" if value is None else _checked_text(value, shown(path), column)
        except pa.ArrowException as error:
            raise DataError(
                f"{shown(path)} is not a readable parquet file: {error}; write it "
                "again, or leave it out"
            ) from error
        except OSError as error:
            raise DataError(
                f"reading {shown(path)} broke off: {error}; the file is damaged, or the network or "
                "the disk failed: check them, and write the file again"
            ) from error


def texts_of(path: str, *, text_column: str, max_characters: int) -> Iterator[str]:
    """Texts of one file in order, blank rows and nulls of parquet too.

    Plain text is split at blank lines into documents of up to `max_characters`; a row of jsonl
    or parquet is a document as it stands.
    """
    suffix = suffix_of(path)
    if suffix.startswith(".jsonl"):
        return _json_texts(path, text_column)
    if suffix == ".parquet":
        return _parquet_texts(path, text_column)
    return split_text(_blocks(path), max_characters)


def documents_of(path: str, *, text_column: str, max_characters: int) -> Iterator[str]:
    """Texts of one file in order; blank ones are left out."""
    texts = texts_of(path, text_column=text_column, max_characters=max_characters)
    return (text for text in texts if text.strip())
