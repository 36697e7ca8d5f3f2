"""Where the conversations of one part of a mixture come from, and the order of its rows."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nanochat_core.conversation.types import Conversation

PERMUTATION_SEED = 42
"""RECIPE section 6: every published set is shuffled once and for all."""


class Pool(Protocol):
    """Conversations by the number of their row; a file is read anew for every pass."""

    def __len__(self) -> int:
        """How many there are."""

    def pick(self, rows: Collection[int]) -> Iterator[tuple[int, Conversation]]:
        """Those of these rows, with their numbers, in the order of the file."""


@dataclass(frozen=True)
class Drawn:
    """Conversations that are held in memory."""

    conversations: Sequence[Conversation]

    def __len__(self) -> int:
        return len(self.conversations)

    def pick(self, rows: Collection[int]) -> Iterator[tuple[int, Conversation]]:
        """Those of these rows."""
        return ((row, self.conversations[row]) for row in sorted(rows))


def permutation(num_rows: int) -> list[int]:
    """The rows of a set in the order that every run uses."""
    order: list[int] = np.random.default_rng(PERMUTATION_SEED).permutation(num_rows).tolist()
    return order
