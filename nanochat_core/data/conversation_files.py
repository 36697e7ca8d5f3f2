"""Files of conversations: read line by line from a path or URL, every line checked."""

import gzip
import json
import sys
import zlib
from collections.abc import Collection, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_core.conversation.reading import conversation_of
from nanochat_core.conversation.types import Conversation
from nanochat_core.data.text_files import open_binary, shown
from nanochat_core.errors import DataError

MAX_LINE_BYTES = 4 << 20
"""A thousand times a usual conversation: what is longer is another kind of file."""
MAX_LISTED = 5
READ_ROWS = 1_000


@dataclass(frozen=True)
class Line:
    """A line of a file (or a row of parquet): a conversation, or what is wrong with it.

    `number` counts all lines from 1; `row` from 0, and only those that are not blank.
    """

    number: int
    row: int
    conversation: Conversation | None
    problem: str = ""


def read_lines(
    path: str, *, may_be_empty: bool = False, rows: Container[int] | None = None
) -> Iterator[Line]:
    """Every line of a file of conversations, or those of some rows; blank ones are passed over.

    JSON lines, `.jsonl.gz`, or parquet with a column `messages`. Raises DataError for a file that
    cannot be read at all; what is wrong with one line stands in its `problem`.
    """
    read = _parquet_values if path.endswith(".parquet") else _json_values
    for number, row, value in read(path, range(sys.maxsize) if rows is None else rows):
        try:
            if isinstance(value, DataError):
                raise value
            yield Line(number, row, conversation_of(value, may_be_empty=may_be_empty))
        except DataError as error:
            yield Line(number, row, None, str(error))


@dataclass(frozen=True)
class ConversationFile:
    """The conversations of a file, read anew for every pass over them."""

    path: str
    may_be_empty: bool = False

    def pick(self, rows: Collection[int]) -> Iterator[tuple[int, Conversation]]:
        """Those of these rows; only they are looked into."""
        for line in read_lines(self.path, may_be_empty=self.may_be_empty, rows=rows):
            if line.conversation is None:
                raise DataError(f"{shown(self.path)}:{line.number}: {line.problem}")
            yield line.row, line.conversation

    def __len__(self) -> int:
        return self._num_conversations

    @cached_property
    def _num_conversations(self) -> int:
        if self.path.endswith(".parquet"):
            return _num_parquet_rows(self.path)
        return sum(1 for _ in _json_lines(self.path))


def check_conversations(path: str, *, may_be_empty: bool = False) -> int:
    """How many conversations a file holds. DataError lists the first lines that are none."""
    problems: list[str] = []
    num_good = num_bad = 0
    for line in read_lines(path, may_be_empty=may_be_empty):
        if line.conversation is not None:
            num_good += 1
            continue
        num_bad += 1
        if num_bad <= MAX_LISTED:
            problems.append(f"{shown(path)}:{line.number}: {line.problem}")
    if num_bad > MAX_LISTED:
        problems.append(
            f"and {num_bad - MAX_LISTED:,} more lines of {num_good + num_bad:,}; "
            f"see all with: nanochat data check {shown(path)}"
        )
    if problems:
        raise DataError("\n".join(problems))
    if not num_good:
        raise DataError(f"{shown(path)} holds no conversation; expected one a line, as JSON")
    return num_good


def _json_values(path: str, rows: Container[int]) -> Iterator[tuple[int, int, Any]]:
    """Number, row and value of lines that are not blank; a DataError for one without a value."""
    for row, (number, line) in enumerate(_json_lines(path)):
        if row not in rows:
            continue
        try:
            yield number, row, _parsed(line, number)
        except DataError as error:
            yield number, row, error


def _json_lines(path: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    yield number, line
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_LINE_BYTES)
                elif line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{shown(path)} cannot be read after line {number} ({error}); fetch or write it again"
        ) from error


@contextmanager
def _open(path: str) -> Iterator[BinaryIO | gzip.GzipFile]:
    with ExitStack() as files:
        raw = files.enter_context(open_binary(path))
        yield files.enter_context(gzip.open(raw)) if path.endswith(".gz") else raw


def _parsed(line: bytes, number: int) -> Any:
    if len(line) > MAX_LINE_BYTES:
        raise DataError(
            f"longer than {MAX_LINE_BYTES:,} bytes; expected one conversation a line, as JSON"
        )
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("UTF-16; expected UTF-8: convert the file")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte {error.start} of the line is 0x{line[error.start]:02x}; convert the "
            "file to UTF-8"
        ) from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not JSON ({error}), but {text.strip()[:40]!r}; expected one conversation a line"
        ) from None


def _parquet_values(path: str, rows: Container[int]) -> Iterator[tuple[int, int, Any]]:
    done = 0
    try:
        with open_binary(path) as raw, pq.ParquetFile(raw) as file:
            _check_column(path, file)
            for batch in file.iter_batches(READ_ROWS, columns=["messages"]):
                wanted = [i for i in range(len(batch)) if done + i in rows]
                found = batch.column(0).take(pa.array(wanted, pa.int64())).to_pylist()
                for place, messages in zip(wanted, found, strict=True):
                    yield done + place + 1, done + place, messages
                done += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{shown(path)} cannot be read as parquet after row {done} ({error}); fetch it again"
        ) from error


def _num_parquet_rows(path: str) -> int:
    try:
        with open_binary(path) as raw, pq.ParquetFile(raw) as file:
            _check_column(path, file)
            return int(file.metadata.num_rows)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{shown(path)} cannot be read as parquet ({error}); fetch it again"
        ) from error


def _check_column(path: str, file: pq.ParquetFile) -> None:
    names = file.schema_arrow.names
    if "messages" not in names:
        raise DataError(
            f"{shown(path)} has the columns {', '.join(names)}; expected a column messages, as in "
            "SmolTalk"
        )
