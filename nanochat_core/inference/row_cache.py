"""The key-value cache of many sequences, one row each, that grows while it is used.

Shapes: L blocks, R rows, G key heads, S capacity of a row, D head dim.
"""

import torch
import torch.nn.functional as F

from nanochat_core.model.config import ModelConfig

FIRST_ROWS, FIRST_CAPACITY = 4, 256
"""A conversation in a terminal needs no more."""
SPARE_SLOTS = 1
"""At the end of each row, for keys and values of rows that only fill a batch."""


class RowCache:
    """Keys and values by row and position; which of them mean anything is for others to know."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        num_rows: int = FIRST_ROWS,
        capacity: int = FIRST_CAPACITY,
    ) -> None:
        slots = capacity + SPARE_SLOTS
        shape = (config.n_layer, num_rows, config.n_kv_head, slots, config.head_dim)
        # Zeros: a masked slot still takes part as 0 * value, which NaN in stray memory would spoil.
        self.keys_LRGSD = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LRGSD = torch.zeros(shape, dtype=dtype, device=device)
        self.generation = 0
        """Counts the times that the tensors were replaced by larger ones."""

    @property
    def bytes_per_token(self) -> int:
        """What keys and values of one token take in all blocks."""
        blocks, _, groups, _, head_dim = self.keys_LRGSD.shape
        return 2 * blocks * groups * head_dim * self.keys_LRGSD.element_size()

    @property
    def num_rows(self) -> int:
        """Rows that there is memory for."""
        return self.keys_LRGSD.size(1)

    @property
    def capacity(self) -> int:
        """Tokens that each row has memory for."""
        return self.keys_LRGSD.size(3) - SPARE_SLOTS

    @torch.inference_mode()
    def grow(self, num_rows: int, capacity: int) -> None:
        """Have so many rows of so many tokens, or what there is if that is more; all stays."""
        more_rows = max(num_rows - self.num_rows, 0)
        more_tokens = max(capacity - self.capacity, 0)
        if more_rows or more_tokens:
            padding = (0, 0, 0, more_tokens, 0, 0, 0, more_rows)
            self.keys_LRGSD = F.pad(self.keys_LRGSD, padding)
            self.values_LRGSD = F.pad(self.values_LRGSD, padding)
            self.generation += 1

    @torch.inference_mode()
    def shrink(self, num_rows: int) -> None:
        """Keep the first rows only."""
        self.keys_LRGSD = self.keys_LRGSD[:, :num_rows].clone()
        self.values_LRGSD = self.values_LRGSD[:, :num_rows].clone()
        self.generation += 1

    @torch.inference_mode()
    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Put the first tokens of one row into another one."""
        for stored in (self.keys_LRGSD, self.values_LRGSD):
            stored[:, target, :, :num_tokens] = stored[:, source, :, :num_tokens]

    @torch.inference_mode()
    def swap(self, one: int, other: int, num_tokens: int) -> None:
        """Exchange the first tokens of two rows."""
        for stored in (self.keys_LRGSD, self.values_LRGSD):
            kept = stored[:, one, :, :num_tokens].clone()
            stored[:, one, :, :num_tokens] = stored[:, other, :, :num_tokens]
            stored[:, other, :, :num_tokens] = kept
