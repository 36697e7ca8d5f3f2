"""Who has which row of the cache, and what rows without a sequence still hold.

Rows are ordered: those that decode come first, then those whose prompt is being read, then those
that are free. A pass over neighbouring rows is a slice of the cache. A free row keeps its tokens
until it is needed: a prompt that begins like it need not be read again.
"""

from dataclasses import dataclass, field
from typing import cast

import numpy as np

from nanochat_core.inference.row_cache import RowCache
from nanochat_core.inference.sequences import ActiveSequence

MIN_SHARED = 16
"""A shorter common beginning costs more to look for and copy than to read again."""


@dataclass
class Row:
    """One row: the sequence that has it, or the tokens that are left of one."""

    sequence: ActiveSequence | None = None
    left: list[int] = field(default_factory=list)
    freed: int = 0
    """When it became free, in steps; the one that is free longest is used first."""

    @property
    def num_cached(self) -> int:
        """Tokens whose keys and values it holds."""
        return len(self.left) if self.sequence is None else self.sequence.num_cached


@dataclass(frozen=True)
class Head:
    """The beginning of a prompt that a row has in the cache."""

    row: int
    num_tokens: int


class Rows:
    """The rows in use and the free ones, and the moves of the cache that keep their order.

    Free rows are kept for what they hold while there are at most `max_rows` of them and those in
    use, and no more than `max_tokens` in all.
    """

    def __init__(self, cache: RowCache, max_rows: int, max_tokens: int) -> None:
        self._cache, self._max_rows, self._max_tokens = cache, max_rows, max_tokens
        self._rows: list[Row] = []
        self.num_decoding = self.num_running = 0
        self._clock = 0

    def sequence(self, row: int) -> ActiveSequence:
        """The sequence of a row in use."""
        found = self._rows[row].sequence
        assert found is not None, f"row {row} is free"
        return found

    @property
    def running(self) -> list[ActiveSequence]:
        """Every sequence that has a row, by row."""
        return self._sequences(0, self.num_running)

    @property
    def decoding(self) -> list[ActiveSequence]:
        """Sequences that get a token at a time, by row."""
        return self._sequences(0, self.num_decoding)

    @property
    def prefilling(self) -> list[ActiveSequence]:
        """Sequences whose prompt is being read, by row."""
        return self._sequences(self.num_decoding, self.num_running)

    def find_head(self, prompt: list[int]) -> Head:
        """The row with the longest beginning in common; one token is always left to read."""
        best = Head(-1, 0)
        for number, row in enumerate(self._rows):
            tokens = row.left if row.sequence is None else row.sequence.tokens
            if row.num_cached >= MIN_SHARED and tokens[:MIN_SHARED] == prompt[:MIN_SHARED]:
                shared = num_shared(prompt[:-1], tokens[: row.num_cached])
                if shared > best.num_tokens:
                    best = Head(number, shared)
        return best if best.num_tokens >= MIN_SHARED else Head(-1, 0)

    def reserve(self, num_tokens: int) -> None:
        """Make rows long enough; free ones are given up where all would be too much."""
        capacity = self._cache.capacity
        if num_tokens <= capacity:
            return
        shared = self._max_tokens // max(self.num_running, 1)
        longer = max(num_tokens, min(_grown(capacity), shared))
        kept = max(self.num_running, 1, min(len(self._rows), self._max_tokens // longer))
        if kept < self._cache.num_rows:
            del self._rows[kept:]
            self._cache.shrink(kept)
        self._cache.grow(kept, longer)

    def take(self, sequence: ActiveSequence, head: Head) -> None:
        """Give a sequence the row after the last one in use, with the head in it."""
        target = self.num_running
        if self._needs_another():
            self._rows.append(Row())
            if len(self._rows) > self._cache.num_rows:
                wanted = min(_grown(self._cache.num_rows), self._most_rows())
                self._cache.grow(max(len(self._rows), wanted), 0)
        if head.row >= target and head.num_tokens * 2 >= self._rows[head.row].num_cached:
            self._swap(head.row, target)
        else:
            self._vacate(target, head)
            if head.row >= 0 and head.row != target:
                self._cache.copy(head.row, target, head.num_tokens)
        sequence.num_cached = head.num_tokens
        self._rows[target] = Row(sequence)
        self.num_running += 1

    def start_decoding(self, row: int) -> None:
        """Move a row whose prompt was read to those that decode."""
        self._swap(row, self.num_decoding)
        self.num_decoding += 1

    def free(self, row: int) -> None:
        """Take a row from its sequence; what is cached of it stays until the row is needed."""
        sequence = self.sequence(row)
        self._clock += 1
        left = sequence.tokens[: sequence.num_cached]
        self._rows[row] = Row(None, left, self._clock)
        if row < self.num_decoding:
            self.num_decoding -= 1
            self._swap(row, self.num_decoding)
            row = self.num_decoding
        self.num_running -= 1
        self._swap(row, self.num_running)

    def row_of(self, sequence: ActiveSequence) -> int:
        """The row of a running sequence."""
        return next(i for i, row in enumerate(self._rows) if row.sequence is sequence)

    def forget(self) -> None:
        """Drop what free rows hold: the weights that made it have changed."""
        for row in self._rows[self.num_running :]:
            row.left = []

    @property
    def capacity(self) -> int:
        """Tokens that a row has memory for."""
        return self._cache.capacity

    def _sequences(self, first: int, stop: int) -> list[ActiveSequence]:
        # Every step asks: without a call and a check for each row.
        return cast("list[ActiveSequence]", [row.sequence for row in self._rows[first:stop]])

    def _most_rows(self) -> int:
        return min(self._max_rows, self._max_tokens // self._cache.capacity)

    def _needs_another(self) -> bool:
        """Whether no free row can be used without loss, and there is memory for one more."""
        free = self._rows[self.num_running :]
        return not free or (all(row.left for row in free) and len(self._rows) < self._most_rows())

    def _vacate(self, target: int, head: Head) -> None:
        """Keep what the free row `target` holds, if another free one holds less of use."""
        candidates = range(target, len(self._rows))
        victim = min(candidates, key=lambda i: (i == head.row, self._rows[i].freed))
        if victim != target:
            self._cache.copy(target, victim, self._rows[target].num_cached)
            self._rows[victim] = self._rows[target]

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        rows = self._rows
        self._cache.swap(one, other, max(rows[one].num_cached, rows[other].num_cached))
        rows[one], rows[other] = rows[other], rows[one]


def _grown(size: int) -> int:
    """By half at least, so that growing costs little in all."""
    return size * 3 // 2


def num_shared(one: list[int], other: list[int]) -> int:
    """Length of the common beginning."""
    shortest = min(len(one), len(other))
    differs = np.array(one[:shortest]) != np.array(other[:shortest])
    return int(differs.argmax()) if differs.any() else shortest
