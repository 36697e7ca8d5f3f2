"""A preallocated key-value cache whose rows are at positions of their own.

Shapes: L blocks, B batch, G key heads, S capacity, D head dim, T new positions, C channels,
H query heads, R rotation planes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from nanochat_core.errors import ConfigError
from nanochat_core.model.attention import attend, repeat_heads
from nanochat_core.model.config import ModelConfig


class KVCache:
    """Keys, values and smear state of `batch` sequences of up to `capacity` tokens each.

    `lengths` counts the tokens of each row, on the host: nothing here waits for a device.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layer, batch, config.n_kv_head, capacity, config.head_dim)
        # Zeros: a masked slot still takes part as 0 * value, which NaN in stray memory would spoil.
        self.keys_LBGSD = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LBGSD = torch.zeros(shape, dtype=dtype, device=device)
        self.previous_B1C = torch.zeros(batch, 1, config.n_embd, dtype=dtype, device=device)
        self.capacity = capacity
        self.lengths = [0] * batch

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def room(self) -> int:
        """Tokens that the longest row can still take."""
        return self.capacity - max(self.lengths)

    def reset(self, row: int) -> None:
        """Empty one row for a new sequence; the others stay."""
        self.lengths[row] = 0
        self.previous_B1C[row] = 0

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        index = torch.tensor(rows, dtype=torch.long, device=self.keys_LBGSD.device)
        self.keys_LBGSD = self.keys_LBGSD.index_select(1, index)
        self.values_LBGSD = self.values_LBGSD.index_select(1, index)
        self.previous_B1C = self.previous_B1C.index_select(0, index)
        self.lengths = [self.lengths[row] for row in rows]

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` tokens a row; what is stored stays."""
        more = max(capacity - self.capacity, 0)
        self.keys_LBGSD = F.pad(self.keys_LBGSD, (0, 0, 0, more))
        self.values_LBGSD = F.pad(self.values_LBGSD, (0, 0, 0, more))
        self.capacity += more

    def begin(self, num_new: int, num_valid: Sequence[int] | None = None) -> "CacheStep":
        """Plan one forward pass over `num_new` columns; see `GPT.forward_cached`.

        Raises ConfigError when a row would outgrow the capacity.
        """
        counts = [num_new] * self.batch if num_valid is None else list(num_valid)
        if len(counts) != self.batch or not all(0 <= n <= num_new for n in counts):
            raise ConfigError(
                f"num_valid={counts} for {self.batch} rows of {num_new} columns; give each row a "
                "count between 0 and the number of columns"
            )
        needed = max(start + n for start, n in zip(self.lengths, counts, strict=True))
        if needed > self.capacity:
            raise ConfigError(
                f"a row would hold {needed} tokens, the cache has room for {self.capacity}; "
                "make a larger cache or generate fewer tokens"
            )
        return CacheStep(self, num_new, counts)


class CacheStep:
    """One forward pass over a cache: where new keys go and which keys each query sees."""

    def __init__(self, cache: KVCache, num_new: int, counts: list[int]) -> None:
        self.cache, self.num_new, self.counts = cache, num_new, counts
        self.starts = list(cache.lengths)
        self.is_full = all(n == num_new for n in counts)
        # Rows that start together, as in a prefill or with one row, need no index tensors; columns
        # of padding are then stored as well, and overwritten before anything can see them.
        self.is_aligned = len(set(self.starts)) == 1 and self.starts[0] + num_new <= cache.capacity
        self.longest = max(self.starts) + num_new
        device = cache.keys_LBGSD.device
        if not self.is_aligned:
            starts_B1 = torch.tensor(self.starts, device=device)[:, None]
            self.positions_BT = starts_B1 + torch.arange(num_new, device=device)
            valid = [(b, t) for b, n in enumerate(counts) for t in range(n)]
            self._rows_N = torch.tensor([b for b, _ in valid], device=device, dtype=torch.long)
            self._columns_N = torch.tensor([t for _, t in valid], device=device, dtype=torch.long)
        self.layers = [LayerStep(self, i) for i in range(cache.keys_LBGSD.size(0))]

    def rotary(
        self, cos_TR: torch.Tensor, sin_TR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of the tables for the new positions, as `rotate` wants them."""
        if self.is_aligned:
            new = slice(self.starts[0], self.starts[0] + self.num_new)
            return cos_TR[new, None], sin_TR[new, None]
        positions_BT = self.positions_BT.clamp(max=cos_TR.size(0) - 1)
        return cos_TR[positions_BT][:, :, None], sin_TR[positions_BT][:, :, None]

    def last_valid(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """The column of each row's last token, (B, 1, C)."""
        if self.is_full:
            return x_BTC[:, -1:]
        last_B = torch.tensor([max(n - 1, 0) for n in self.counts], device=x_BTC.device)
        return x_BTC[torch.arange(x_BTC.size(0), device=x_BTC.device), last_B][:, None]

    def finish(self, embedded_BTC: torch.Tensor) -> None:
        """Count the new tokens and keep what the next step's smear needs."""
        last_B1C = self.last_valid(embedded_BTC)
        if 0 in self.counts:
            is_moved_B = torch.tensor([n > 0 for n in self.counts], device=last_B1C.device)
            last_B1C = torch.where(is_moved_B[:, None, None], last_B1C, self.cache.previous_B1C)
        self.cache.previous_B1C.copy_(last_B1C)
        for row, count in enumerate(self.counts):
            self.cache.lengths[row] += count


class LayerStep:
    """What one block does to the cache during a step."""

    def __init__(self, step: CacheStep, layer: int) -> None:
        self.step = step
        self.keys_BGSD = step.cache.keys_LBGSD[layer]
        self.values_BGSD = step.cache.values_LBGSD[layer]

    def attend(
        self,
        q_BHTD: torch.Tensor,
        k_BGTD: torch.Tensor,
        v_BGTD: torch.Tensor,
        *,
        window: int,
        band: torch.Tensor,
    ) -> torch.Tensor:
        """Store the new keys and values, then attend over the slice of the cache in use."""
        if self.step.is_aligned:
            return self._attend_aligned(q_BHTD, k_BGTD, v_BGTD, window=window, band=band)
        return self._attend_rows(q_BHTD, k_BGTD, v_BGTD, window=window)

    def _attend_aligned(
        self,
        q_BHTD: torch.Tensor,
        k_BGTD: torch.Tensor,
        v_BGTD: torch.Tensor,
        *,
        window: int,
        band: torch.Tensor,
    ) -> torch.Tensor:
        start, stop = self.step.starts[0], self.step.starts[0] + self.step.num_new
        self.keys_BGSD[:, :, start:stop] = k_BGTD
        self.values_BGSD[:, :, start:stop] = v_BGTD
        keys, values = self.keys_BGSD[:, :, :stop], self.values_BGSD[:, :, :stop]
        return attend(q_BHTD, keys, values, window=window, band=band)

    def _attend_rows(
        self, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor, *, window: int
    ) -> torch.Tensor:
        step = self.step
        rows_N, columns_N = step._rows_N, step._columns_N
        slots_N = step.positions_BT[rows_N, columns_N]
        self.keys_BGSD[rows_N, :, slots_N] = k_BGTD[rows_N, :, columns_N]
        self.values_BGSD[rows_N, :, slots_N] = v_BGTD[rows_N, :, columns_N]
        first = max(0, min(step.starts) - window)
        stop = max(start + n for start, n in zip(step.starts, step.counts, strict=True))
        keys_BHSD = repeat_heads(self.keys_BGSD[:, :, first:stop], q_BHTD.size(1))
        values_BHSD = repeat_heads(self.values_BGSD[:, :, first:stop], q_BHTD.size(1))
        slots_S = torch.arange(first, stop, device=q_BHTD.device)
        positions_BT1 = step.positions_BT[..., None]
        mask_BTS = (slots_S <= positions_BT1) & (slots_S >= positions_BT1 - window)
        if not step.is_full:
            # A query of padding may see no stored key at all; let it see everything instead of NaN.
            mask_BTS |= ~mask_BTS.any(dim=-1, keepdim=True)
        return F.scaled_dot_product_attention(
            q_BHTD, keys_BHSD, values_BHSD, attn_mask=mask_BTS[:, None]
        )
