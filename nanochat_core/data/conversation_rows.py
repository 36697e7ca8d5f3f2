"""Rows of rendered conversations for SFT: packed best-fit and padded, never cropped. RECIPE 6.

n rows, T inputs of a row.
"""

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nanochat_core.errors import DataError

IGNORE = -1
"""Target of a position that is not trained on."""

Rendered = tuple[Sequence[int] | npt.NDArray[np.int32], Sequence[int] | npt.NDArray[np.bool_]]
"""Token ids of a conversation and, for each, 1 if it is trained on."""


Fate = Literal["taught", "too long", "without targets"]
"""What SFT does with a conversation; those that are not taught are left out and counted."""


def fate_of(rendered: Rendered, sequence_len: int) -> Fate:
    """Whether a conversation fits a row of T+1 tokens, and has a token that is trained on."""
    ids, mask = rendered
    if len(ids) > sequence_len + 1:
        return "too long"
    return "taught" if np.any(mask[1:]) else "without targets"


@dataclass(frozen=True)
class ConversationRows:
    """All rows of one epoch; row order and row content are fixed by the input order.

    Rows are put together when they are read: held whole, they would take the memory of several
    epochs, on every rank.
    """

    packed: Sequence[Rendered]
    members: Sequence[Sequence[int]]
    """Of each row, which of the conversations are in it, in this order."""
    num_targets_n: npt.NDArray[np.int64]
    """Supervised targets of each row; never 0."""
    sequence_len: int
    pad_id: int
    too_long: int
    without_targets: int

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return len(self.members)

    @property
    def conversations(self) -> int:
        """Those that are in some row."""
        return len(self.packed)

    def read(self, first_row: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (count, T) from a row on, starting over after the last one."""
        inputs_nT = np.full((count, self.sequence_len), self.pad_id, dtype=np.int64)
        targets_nT = np.full((count, self.sequence_len), IGNORE, dtype=np.int64)
        for place, row in enumerate(self._rows(first_row, count)):
            conversations = [self.packed[i] for i in self.members[row]]
            ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids, _ in conversations])
            mask = np.concatenate([np.asarray(mask, dtype=bool) for _, mask in conversations])
            used = min(len(ids), self.sequence_len)
            inputs_nT[place, :used] = ids[:used]
            targets_nT[place, : len(ids) - 1] = np.where(mask[1:], ids[1:], IGNORE)
        return inputs_nT, targets_nT

    def targets_in(self, first_row: int, count: int) -> int:
        """Supervised targets of those rows together."""
        return int(self.num_targets_n[self._rows(first_row, count)].sum())

    def _rows(self, first_row: int, count: int) -> npt.NDArray[np.int64]:
        return np.arange(first_row, first_row + count) % self.num_rows


def pack_conversations(
    rendered: Sequence[Rendered], *, sequence_len: int, buffer: int, pad_id: int
) -> ConversationRows:
    """Fill rows of T+1 tokens from a buffer of conversations, the longest that fits first.

    Conversations longer than a row are left out and counted; so are, apart from them, those
    that fit and of which no token would be a target. A row always supervises at least one token.
    """
    capacity = sequence_len + 1
    fates = [fate_of(each, sequence_len) for each in rendered]
    fitting = [each for each, fate in zip(rendered, fates, strict=True) if fate == "taught"]
    too_long, without_targets = fates.count("too long"), fates.count("without targets")
    if not fitting:
        raise DataError(
            f"none of {len(rendered)} conversations fits into {capacity} tokens with something to "
            f"train on: {too_long} are longer, and {without_targets} hold nothing that the "
            "assistant says; use a longer sequence_len or shorter conversations"
        )
    members = _fill_rows([len(ids) for ids, _ in fitting], capacity, buffer)
    supervised = np.array([np.count_nonzero(mask) for _, mask in fitting])
    # The first token of a row is nobody's target.
    lost = np.array([bool(fitting[row[0]][1][0]) for row in members])
    return ConversationRows(
        packed=fitting,
        members=members,
        num_targets_n=np.array([supervised[row].sum() for row in members]) - lost,
        sequence_len=sequence_len,
        pad_id=pad_id,
        too_long=too_long,
        without_targets=without_targets,
    )


def _fill_rows(lengths: Sequence[int], capacity: int, buffer: int) -> list[list[int]]:
    """Of each row its members: the longest of the buffer that still fits, the first of equals."""
    # By length, and of equal ones the first last: the one to take ends what fits.
    waiting: list[tuple[int, int]] = []
    upcoming = iter(range(len(lengths)))
    rows: list[list[int]] = []
    while True:
        row: list[int] = []
        space = capacity
        while True:
            while len(waiting) < buffer and (index := next(upcoming, None)) is not None:
                insort(waiting, (lengths[index], -index))
            num_fitting = bisect_right(waiting, (space, 0))
            if not num_fitting:
                break
            length, negative = waiting.pop(num_fitting - 1)
            row.append(-negative)
            space -= length
        if not row:
            return rows
        rows.append(row)
