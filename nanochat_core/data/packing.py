"""How documents fill rows of a fixed number of tokens; made from document lengths alone.

`split` keeps every token: documents longer than a row are cut into pieces, of which every later
one starts with a BOS of its own, and pieces go best-fit decreasing into rows. `crop` is the
reference's policy (RECIPE section 4): a buffer of documents, the longest that fits, else the
shortest cut to what is left, its rest thrown away.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Packing = Literal["split", "crop"]
IntArray = NDArray[np.int64]

REFERENCE_BUFFER = 1_000
REFERENCE_REFILL = 128


@dataclass(frozen=True)
class Pieces:
    """Runs of tokens that stay together in one row; positions count from the first document."""

    starts: IntArray
    lengths: IntArray
    continued: NDArray[np.bool_]
    """True where the run is not the start of its document: a BOS goes before it."""

    @property
    def sizes(self) -> IntArray:
        """Places that each piece takes in a row, the added BOS included."""
        return self.lengths + self.continued


@dataclass(frozen=True)
class RowTable:
    """The pieces of every row, in order: those of row r are [pointers[r], pointers[r + 1])."""

    pieces: Pieces
    pointers: IntArray

    @property
    def num_rows(self) -> int:
        """Rows in the table."""
        return len(self.pointers) - 1


def split_documents(document_lengths: IntArray, row_tokens: int) -> Pieces:
    """Cut documents longer than `row_tokens`; later pieces leave one place for their BOS."""
    extra = np.maximum(document_lengths - row_tokens, 0)
    per_document = 1 + -(-extra // (row_tokens - 1))
    owner = np.repeat(np.arange(len(document_lengths)), per_document)
    index = np.arange(len(owner)) - (np.cumsum(per_document) - per_document)[owner]
    offsets = np.where(index == 0, 0, row_tokens + (index - 1) * (row_tokens - 1))
    continued = index > 0
    lengths = np.minimum(document_lengths[owner] - offsets, row_tokens - continued)
    first = np.cumsum(document_lengths) - document_lengths
    return Pieces(first[owner] + offsets, lengths, continued)


@dataclass(frozen=True)
class Placement:
    """One move of best-fit decreasing: pieces of one size put into rows with equal room.

    Room `room` (None: rows not yet opened) is left by `rows` rows; each takes `each` pieces.
    """

    size: int
    room: int | None
    rows: int
    each: int


def _best_fit_moves(size_counts: list[int], row_tokens: int) -> Iterator[Placement]:
    """Best-fit decreasing as moves of equal pieces, found from the histogram of sizes alone.

    A piece goes into the row with the least room that holds it. Once a row was chosen it has
    less room than any other that fits, so it takes equal pieces until none fits: whole groups
    of rows can be filled at once, and the cost follows the number of sizes, not of documents.
    """
    rows_with = [0] * (row_tokens + 1)
    rooms: list[int] = []
    for size in range(row_tokens, 0, -1):
        left = size_counts[size]
        while left:
            index = bisect_left(rooms, size)
            room = rooms[index] if index < len(rooms) else None
            each = min((room or row_tokens) // size, left)
            rows = left // each
            if room is not None:
                rows = min(rows, rows_with[room])
                rows_with[room] -= rows
                if not rows_with[room]:
                    del rooms[index]
            yield Placement(size, room, rows, each)
            left -= rows * each
            rest = (room or row_tokens) - each * size
            if rest:
                if not rows_with[rest]:
                    insort(rooms, rest)
                rows_with[rest] += rows


def _size_counts(sizes: IntArray, row_tokens: int) -> list[int]:
    counts: list[int] = np.bincount(sizes, minlength=row_tokens + 1).tolist()
    return counts


def count_split_rows(document_lengths: IntArray, row_tokens: int) -> int:
    """Rows that `pack_split` makes, in far less time than packing them."""
    counts = _size_counts(split_documents(document_lengths, row_tokens).sizes, row_tokens)
    return sum(m.rows for m in _best_fit_moves(counts, row_tokens) if m.room is None)


class _RowStacks:
    """Open rows by the room they have left; the last one put on a stack is taken first."""

    def __init__(self) -> None:
        self._stacks: dict[int, list[IntArray]] = {}

    def push(self, room: int, rows: IntArray) -> None:
        if room and len(rows):
            self._stacks.setdefault(room, []).append(rows)

    def pop(self, room: int, count: int) -> IntArray:
        stack, taken = self._stacks[room], []
        while count:
            top = stack.pop()
            if len(top) > count:
                stack.append(top[:-count])
                top = top[-count:]
            taken.append(top)
            count -= len(top)
        return np.concatenate(taken)


def pack_split(document_lengths: IntArray, row_tokens: int) -> RowTable:
    """Best-fit decreasing over all pieces (Johnson, 1973); no token is lost or repeated."""
    pieces = split_documents(document_lengths, row_tokens)
    by_size = np.argsort(-pieces.sizes, kind="stable")
    row_of = np.empty(len(by_size), dtype=np.int64)
    stacks, num_rows, done = _RowStacks(), 0, 0
    for move in _best_fit_moves(_size_counts(pieces.sizes, row_tokens), row_tokens):
        if move.room is None:
            rows = np.arange(num_rows, num_rows + move.rows, dtype=np.int64)
            num_rows += move.rows
        else:
            rows = stacks.pop(move.room, move.rows)
        count = move.rows * move.each
        row_of[done : done + count] = np.repeat(rows, move.each)
        stacks.push((move.room or row_tokens) - move.each * move.size, rows)
        done += count
    order = by_size[np.argsort(row_of, kind="stable")]
    pointers = np.zeros(num_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_of, minlength=num_rows), out=pointers[1:])
    packed = Pieces(pieces.starts[order], pieces.lengths[order], pieces.continued[order])
    return RowTable(packed, pointers)


class _Buffer:
    """Documents waiting for a row, kept sorted by length and, among equals, latest first."""

    def __init__(self, document_lengths: IntArray) -> None:
        self._lengths: list[int] = document_lengths.tolist()
        self._next = 0
        self._waiting: list[tuple[int, int]] = []

    def refill(self) -> bool:
        """Take documents in batches until there are enough; False when none is left at all."""
        while len(self._waiting) < REFERENCE_BUFFER and self._next < len(self._lengths):
            stop = min(self._next + REFERENCE_REFILL, len(self._lengths))
            for document in range(self._next, stop):
                insort(self._waiting, (self._lengths[document], -document))
            self._next = stop
        return bool(self._waiting)

    def pick(self, room: int) -> tuple[int, int]:
        """Document and tokens of it: the longest that fits, else the start of the shortest."""
        index = bisect_right(self._waiting, (room, 0)) - 1
        if index < 0:
            index = bisect_right(self._waiting, (self._waiting[0][0], 0)) - 1
        length, negative = self._waiting.pop(index)
        return -negative, min(length, room)


def pack_crop(document_lengths: IntArray, row_tokens: int) -> RowTable:
    """The reference's rows; when documents run out, the last row may stay short."""
    starts_of = (np.cumsum(document_lengths) - document_lengths).tolist()
    buffer = _Buffer(document_lengths)
    starts, lengths, pointers = [], [], [0]
    room = row_tokens
    while buffer.refill():
        document, length = buffer.pick(room)
        starts.append(starts_of[document])
        lengths.append(length)
        room -= length
        if not room:
            pointers.append(len(starts))
            room = row_tokens
    if room < row_tokens:
        pointers.append(len(starts))
    pieces = Pieces(
        np.array(starts, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        np.zeros(len(starts), dtype=np.bool_),
    )
    return RowTable(pieces, np.array(pointers, dtype=np.int64))


def pack(document_lengths: IntArray, row_tokens: int, packing: Packing) -> RowTable:
    """Rows of `row_tokens` places over these documents (lengths in tokens, BOS included)."""
    lengths = document_lengths.astype(np.int64)
    return (pack_split if packing == "split" else pack_crop)(lengths, row_tokens)


def count_rows(document_lengths: IntArray, row_tokens: int, packing: Packing) -> int:
    """Rows that `pack` makes."""
    lengths = document_lengths.astype(np.int64)
    if packing == "split":
        return count_split_rows(lengths, row_tokens)
    return pack_crop(lengths, row_tokens).num_rows
