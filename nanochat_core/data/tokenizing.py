"""Documents of shards as token ids: shards cut into pieces, and what a process does with one.

A piece is a range of rows. It is read a few documents at a time, so memory depends neither on the
size of a shard nor on that of its row groups.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nanochat_core.data.shards import TEXT_COLUMN
from nanochat_core.errors import DataError
from nanochat_core.tokenizer.tokenizer import Tokenizer

MOST_BYTES, LEAST_BYTES = 2**25, 2**20
"""Of text in a piece: seconds of work at most, and enough to be worth handing over."""
PIECES_PER_WORKER = 4
"""At least, where pieces are that small: so that all end at about the same time."""

ALONE_BYTES = 2**23
"""As much again for every process more: starting one takes as long as tokenizing this."""

ROWS_AT_A_TIME = 128
RUN_CHARACTERS = 2**18
"""Documents are encoded in runs of at least this length."""
READ_BYTES = 2**20
"""Without a buffer, or with pre_buffer, pyarrow keeps whole columns of row groups in memory."""


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `end` of a shard, and where their tokens go."""

    shard: Path
    first: int
    end: int
    text_bytes: int
    """About, as the shard says; to tell how far the work is."""
    tokenizer: Path
    identity: str
    output: Path
    suffix: str
    """Of the files of this piece; none for the first of a shard."""

    def file(self, kind: str, suffix: str | None = None) -> Path:
        """Where `tokens` or `lengths` of this piece are."""
        ending = self.suffix if suffix is None else suffix
        return self.output / f"{self.shard.stem}.{kind}.bin{ending}"


class PieceCounts(NamedTuple):
    """How much was in a piece."""

    documents: int
    tokens: int
    characters: int
    text_bytes: int


@dataclass(frozen=True)
class Work:
    """What the pieces of all shards share."""

    tokenizer: Path
    identity: str
    output: Path

    def pieces(self, shards: Iterable[Path], *, workers: int) -> list[Piece]:
        """Every row of every shard once, in order; a shard is at least one piece."""
        sizes = {shard: _size(shard) for shard in shards}
        whole = sum(text_bytes for _, text_bytes in sizes.values())
        share = whole // (PIECES_PER_WORKER * max(workers, 1))
        target = min(max(share, LEAST_BYTES), MOST_BYTES)
        return [
            piece
            for shard, (rows, text_bytes) in sizes.items()
            for piece in self._cut(shard, rows, text_bytes, target)
        ]

    def _cut(self, shard: Path, rows: int, text_bytes: int, target: int) -> Iterator[Piece]:
        count = max(1, min(rows, -(-text_bytes // target)))
        for number in range(count):
            yield Piece(
                shard=shard,
                first=rows * number // count,
                end=rows * (number + 1) // count,
                text_bytes=text_bytes // count,
                tokenizer=self.tokenizer,
                identity=self.identity,
                output=self.output,
                suffix=f".{number:05d}" if number else "",
            )


def enough_workers(pieces: Sequence[Piece], workers: int) -> int:
    """As many of `workers` as are worth starting."""
    return min(workers, 1 + sum(piece.text_bytes for piece in pieces) // ALONE_BYTES)


def _size(shard: Path) -> tuple[int, int]:
    """Rows of a shard and about how many bytes its text has; no text is read."""
    with _opened(shard) as file:
        metadata = file.metadata
        # Columns of a schema with nested ones are counted by their leaves.
        paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
        column = [path.split(".")[0] for path in paths].index(TEXT_COLUMN)
        text_bytes = sum(
            metadata.row_group(group).column(column).total_uncompressed_size
            for group in range(metadata.num_row_groups)
        )
        return metadata.num_rows, text_bytes


def _opened(shard: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(shard, buffer_size=READ_BYTES, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise DataError(f"{shard} is no parquet file ({error}); make or fetch it again") from error
    names = file.schema_arrow.names
    if TEXT_COLUMN not in names:
        file.close()
        raise DataError(
            f"{shard} has no column {TEXT_COLUMN!r}, only {', '.join(names)}; expected a shard "
            "as the station shards makes it"
        )
    return file


def read_texts(shard: Path, first: int = 0, end: int | None = None) -> Iterator[pa.Array]:
    """Documents in rows `first` to `end`, some at a time, as they are stored."""
    with _opened(shard) as file:
        metadata = file.metadata
        last = metadata.num_rows if end is None else end
        row, groups = 0, list(range(metadata.num_row_groups))
        while groups and row + metadata.row_group(groups[0]).num_rows <= first:
            row += metadata.row_group(groups.pop(0)).num_rows
        batches = file.iter_batches(
            ROWS_AT_A_TIME, row_groups=groups, columns=[TEXT_COLUMN], use_threads=False
        )
        for batch in batches:
            low, high = max(first - row, 0), min(last - row, len(batch))
            if low < high:
                yield _checked(batch.column(0).slice(low, high - low), shard, row + low)
            row += len(batch)
            if row >= last:
                return


def _checked(texts: pa.Array, shard: Path, row: int) -> pa.Array:
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise DataError(f"column {TEXT_COLUMN!r} of {shard} holds {texts.type}; expected text")
    if texts.null_count:
        raise DataError(
            f"{shard} has {texts.null_count} documents without text in rows {row:,} to "
            f"{row + len(texts):,}; leave such rows out"
        )
    return texts


def read_documents_of(shard: Path) -> Iterator[str]:
    """Documents of a shard in order, a few of them in memory."""
    for texts in read_texts(shard):
        yield from texts.to_pylist()


def tokenize(piece: Piece) -> PieceCounts:
    """Write the tokens and the document lengths of a piece."""
    tokenizer = _loaded(piece.tokenizer, piece.identity)
    documents = tokens = characters = text_bytes = 0
    with (
        piece.file("tokens").open("wb") as token_file,
        piece.file("lengths").open("wb") as length_file,
    ):
        for texts in read_texts(piece.shard, piece.first, piece.end):
            text_bytes += pc.sum(pc.binary_length(texts)).as_py()
            for run in runs(texts.to_pylist()):
                ids, lengths = tokenizer.encode_documents(run)
                # Not `tofile`: its errors do not say that the disk is full.
                token_file.write(ids.astype(ids.dtype.newbyteorder("<"), copy=False).data)
                length_file.write(lengths.astype("<u4", copy=False).data)
                documents += len(run)
                tokens += len(ids)
                characters += sum(map(len, run))
    return PieceCounts(documents, tokens, characters, text_bytes)


@lru_cache(maxsize=1)
def _loaded(folder: Path, identity: str) -> Tokenizer:  # noqa: ARG001  another one, loaded again
    """The tokenizer, read once in a process that has many pieces."""
    return Tokenizer.load(folder)


def runs(texts: Iterable[str]) -> Iterator[list[str]]:
    """Documents in groups that are encoded in one go."""
    run: list[str] = []
    size = 0
    for text in texts:
        run.append(text)
        size += len(text)
        if size >= RUN_CHARACTERS:
            yield run
            run, size = [], 0
    if run:
        yield run
