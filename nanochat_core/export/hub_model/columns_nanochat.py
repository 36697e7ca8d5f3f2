"""Who sees whom: positions, windows and padding of the tokens of one forward pass.

Shapes: B batch, T new tokens, S all tokens (cached ones first), R rotation planes; Q queries and K
keys of one block.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .configuration_nanochat import NanochatConfig

QUERY_BLOCK = 512
"""Queries of one masked attention call: a mask never grows with the square of the input."""


class Columns:
    """The tokens of a forward pass and what is cached before them: positions, and who sees whom.

    Hidden tokens take no position, so that distances are those of the tokens that count.
    """

    def __init__(self, ids_BS: torch.Tensor, real_BS: torch.Tensor | None, start: int) -> None:
        self.ids_BS, self.real_BS, self.start = ids_BS, real_BS, start
        self.columns_S = torch.arange(ids_BS.size(1), device=ids_BS.device)
        self.positions_BS = self.columns_S[None]
        if real_BS is not None:
            self.positions_BS = (real_BS.long().cumsum(dim=1) - 1).clamp(min=0)

    def before(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each new token the id of the one before it, and whether there is one: (B, T) both."""
        last_BS = self.columns_S.expand_as(self.ids_BS)
        if self.real_BS is not None:
            last_BS = torch.where(self.real_BS, last_BS, -1).cummax(dim=1).values
        before_BT = F.pad(last_BS[:, :-1], (1, 0), value=-1)[:, self.start :]
        return self.ids_BS.gather(1, before_BT.clamp(min=0)), before_BT >= 0

    def rotary(
        self, config: NanochatConfig, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (B or 1, T, 1, R) of the new tokens, computed in float32."""
        positions_BT = self.positions_BS[:, self.start :]
        # Made on the CPU: an angle is this times a large position, so that the last bit matters.
        planes_R = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
        inv_freq_R = config.rope_theta ** (-planes_R / config.head_dim)
        angles_BT1R = positions_BT[..., None, None].float() * inv_freq_R.to(positions_BT.device)
        return angles_BT1R.cos().to(dtype), angles_BT1R.sin().to(dtype)

    def seen(self, window: int) -> Iterator[tuple[slice, slice, torch.Tensor | None]]:
        """For each block of new tokens: itself, the keys it may see, and which it does (a mask)."""
        num_new = self.ids_BS.size(1) - self.start
        for first in range(0, num_new, QUERY_BLOCK):
            queries = slice(first, min(first + QUERY_BLOCK, num_new))
            begin, end = self.start + queries.start, self.start + queries.stop
            if self.real_BS is None:
                keys = slice(max(0, begin - window), end)
                behind_QK = self.columns_S[begin:end, None] - self.columns_S[keys]
                mask = None if num_new == 1 else (behind_QK >= 0) & (behind_QK <= window)
            else:
                keys = slice(0, end)
                mask = self._padded_mask(begin, end, window)
            yield queries, keys, mask

    def _padded_mask(self, begin: int, end: int, window: int) -> torch.Tensor:
        """Bool (B, 1, Q, K); hidden tokens see themselves, for a softmax needs something."""
        assert self.real_BS is not None, "there is padding"
        rows_Q1, columns_K = self.columns_S[begin:end, None], self.columns_S[:end]
        behind_BQK = self.positions_BS[:, begin:end, None] - self.positions_BS[:, None, :end]
        seen_BQK = (columns_K <= rows_Q1) & (behind_BQK <= window) & self.real_BS[:, None, :end]
        return (seen_BQK | (columns_K == rows_Q1))[:, None]
