"""Rows of rendered conversations for SFT: packed best-fit and padded, never cropped. RECIPE 6.

n rows, T inputs of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanochat_core.errors import DataError

IGNORE = -1
"""Target of a position that is not trained on."""

Rendered = tuple[Sequence[int], Sequence[int]]
"""Token ids of a conversation and, for each, 1 if it is trained on."""


@dataclass(frozen=True)
class ConversationRows:
    """All rows of one epoch; row order and row content are fixed by the input order."""

    inputs_nT: np.ndarray
    targets_nT: np.ndarray
    conversations: int
    too_long: int

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return len(self.inputs_nT)

    def read(self, first_row: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [first_row, first_row + count), starting over after the last one."""
        rows = np.arange(first_row, first_row + count) % self.num_rows
        return self.inputs_nT[rows], self.targets_nT[rows]


def pack_conversations(
    rendered: Sequence[Rendered], *, sequence_len: int, buffer: int, pad_id: int
) -> ConversationRows:
    """Fill rows of T+1 tokens from a buffer of conversations, the longest that fits first.

    Conversations longer than a row are left out and counted, and so are those of which no token
    is trained on a row's targets; a row always supervises at least one token.
    """
    capacity = sequence_len + 1
    fitting = [(ids, mask) for ids, mask in rendered if len(ids) <= capacity and any(mask[1:])]
    if not fitting:
        raise DataError(
            f"none of {len(rendered)} conversations fits into {capacity} tokens with something to "
            "train on; use a longer sequence_len or shorter conversations"
        )
    rows = _fill_rows(fitting, capacity, buffer)
    inputs = np.full((len(rows), sequence_len), pad_id, dtype=np.int64)
    targets = np.full((len(rows), sequence_len), IGNORE, dtype=np.int64)
    for row, members in enumerate(rows):
        ids = np.concatenate([np.asarray(fitting[i][0], dtype=np.int64) for i in members])
        mask = np.concatenate([np.asarray(fitting[i][1], dtype=bool) for i in members])
        used = min(len(ids), sequence_len)
        inputs[row, :used] = ids[:used]
        targets[row, : len(ids) - 1] = np.where(mask[1:], ids[1:], IGNORE)
    return ConversationRows(inputs, targets, len(fitting), len(rendered) - len(fitting))


def _fill_rows(fitting: Sequence[Rendered], capacity: int, buffer: int) -> list[list[int]]:
    waiting: list[int] = []
    upcoming = iter(range(len(fitting)))
    rows: list[list[int]] = []
    while True:
        row: list[int] = []
        space = capacity
        while True:
            while len(waiting) < buffer and (index := next(upcoming, None)) is not None:
                waiting.append(index)
            fits = [i for i in waiting if len(fitting[i][0]) <= space]
            if not fits:
                break
            # The first of the longest, so that the result does not depend on anything but order.
            chosen = max(fits, key=lambda i: len(fitting[i][0]))
            waiting.remove(chosen)
            row.append(chosen)
            space -= len(fitting[chosen][0])
        if not row:
            return rows
        rows.append(row)
