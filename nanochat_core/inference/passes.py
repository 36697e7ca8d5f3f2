"""The two ways to read and fill the cache: chunks of prompts, and one token of each sequence.

Shapes: B rows, T columns, N = B * T tokens, H query heads, G key heads, S cached positions, D head
dim, R rotation planes.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from nanochat_core.inference.row_cache import RowCache
from nanochat_core.model.attention import attend

READ_AHEAD_BYTES = 1 << 20
"""Less than this is in the processor's cache already."""


class PrefillPass:
    """Prompts of neighbouring rows from one common position on, padded on the right.

    Keys of padding are stored too; a later token takes their place before anything can see them.
    """

    def __init__(
        self,
        cache: RowCache,
        chunks: Sequence[Sequence[int]],
        before: Sequence[int],
        *,
        first_row: int,
        start: int,
        bands: Mapping[int, torch.Tensor],
        is_exact: bool = False,
    ) -> None:
        self._bands = bands
        self._view = _copy if is_exact else _slice
        device = cache.keys_LRGSD.device
        columns = max(map(len, chunks))
        rows = [[*chunk, *[0] * (columns - len(chunk))] for chunk in chunks]
        tokens_BT = torch.tensor(rows, device=device)
        before_B1 = torch.tensor(before, device=device)[:, None]
        self.tokens_N = tokens_BT.flatten()
        self.before_N = torch.cat([before_B1, tokens_BT[:, :-1]], dim=1).flatten()
        self.shape = (len(chunks), columns)
        last = [row * columns + len(chunk) - 1 for row, chunk in enumerate(chunks)]
        self.last_B: torch.Tensor | None = torch.tensor(last, device=device)
        self._rows = slice(first_row, first_row + len(chunks))
        self._new = slice(start, start + columns)
        self._cache = cache

    def rotary(
        self, cos_TR: torch.Tensor, sin_TR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same positions in every row."""
        return cos_TR[self._new, None], sin_TR[self._new, None]

    def attend(
        self,
        block: int,
        q_BTHD: torch.Tensor,
        k_BTGD: torch.Tensor,
        v_BTGD: torch.Tensor,
        *,
        window: int,
    ) -> torch.Tensor:
        """Over what is cached before and the chunk itself, in blocks of queries."""
        keys_BGSD = self._cache.keys_LRGSD[block, self._rows]
        values_BGSD = self._cache.values_LRGSD[block, self._rows]
        keys_BGSD[:, :, self._new] = k_BTGD.transpose(1, 2)
        values_BGSD[:, :, self._new] = v_BTGD.transpose(1, 2)
        seen = slice(0, self._new.stop)
        attended_BHTD = attend(
            q_BTHD.transpose(1, 2),
            self._view(keys_BGSD, seen),
            self._view(values_BGSD, seen),
            window=window,
            band=self._bands.get(window),
        )
        return attended_BHTD.transpose(1, 2)


class DecodePass:
    """The next token of each of some neighbouring rows, each at a position of its own."""

    last_B: torch.Tensor | None = None

    def __init__(
        self,
        cache: RowCache,
        tokens: Sequence[int],
        before: Sequence[int],
        positions: Sequence[int],
        *,
        first_row: int = 0,
        is_exact: bool = False,
    ) -> None:
        device = cache.keys_LRGSD.device
        self._view = _copy if is_exact else _read_ahead if device.type == "cpu" else _slice
        self._cache = cache
        self._rows = slice(first_row, first_row + len(tokens))
        self.tokens_N, self.before_N, self._positions_B = torch.tensor(
            (tokens, before, positions), device=device
        )
        self.shape = (len(tokens), 1)
        self._first, self._stop = min(positions), max(positions) + 1
        self._is_level = self._first + 1 == self._stop
        self._rows_B = None if self._is_level else torch.arange(len(tokens), device=device)
        self._masks: dict[int, torch.Tensor] = {}

    def rotary(
        self, cos_TR: torch.Tensor, sin_TR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The position of each row."""
        if self._is_level:
            return cos_TR[self._first], sin_TR[self._first]
        positions_B = self._positions_B
        return cos_TR[positions_B][:, None, None], sin_TR[positions_B][:, None, None]

    def attend(
        self,
        block: int,
        q_BTHD: torch.Tensor,
        k_BTGD: torch.Tensor,
        v_BTGD: torch.Tensor,
        *,
        window: int,
    ) -> torch.Tensor:
        """Over the slice of the cache that any of the rows can see."""
        keys_BGSD = self._cache.keys_LRGSD[block, self._rows]
        values_BGSD = self._cache.values_LRGSD[block, self._rows]
        if self._is_level:
            keys_BGSD[:, :, self._first] = k_BTGD[:, 0]
            values_BGSD[:, :, self._first] = v_BTGD[:, 0]
        else:
            keys_BGSD[self._rows_B, :, self._positions_B] = k_BTGD[:, 0]
            values_BGSD[self._rows_B, :, self._positions_B] = v_BTGD[:, 0]
        seen = slice(max(0, self._first - window), self._stop)
        attended_BHTD = F.scaled_dot_product_attention(
            q_BTHD.transpose(1, 2),
            self._view(keys_BGSD, seen),
            self._view(values_BGSD, seen),
            attn_mask=None if self._is_level else self._mask(window, seen, q_BTHD.dtype),
            enable_gqa=q_BTHD.size(2) != k_BTGD.size(2),
        )
        return attended_BHTD.transpose(1, 2)

    def _mask(self, window: int, seen: slice, dtype: torch.dtype) -> torch.Tensor:
        """What to add to the scores (B, 1, 1, S); the same in every block of a window."""
        if window not in self._masks:
            slots_S = torch.arange(seen.start, seen.stop, device=self._positions_B.device)
            behind_BS = self._positions_B[:, None] - slots_S
            hidden_BS = (behind_BS < 0) | (behind_BS > window)
            mask_BS = torch.zeros(hidden_BS.shape, dtype=dtype, device=hidden_BS.device)
            mask_BS.masked_fill_(hidden_BS, float("-inf"))
            self._masks[window] = mask_BS[:, None, None]
        return self._masks[window]


def _slice(stored_BGSD: torch.Tensor, seen: slice) -> torch.Tensor:
    return stored_BGSD[:, :, seen]


def _read_ahead(stored_BGSD: torch.Tensor, seen: slice) -> torch.Tensor:
    """The slice, brought nearer: attention in torch 2.13 reads memory at 7 GB/s, a sum at 27."""
    view_BGSD = stored_BGSD[:, :, seen]
    if view_BGSD.numel() * view_BGSD.element_size() >= READ_AHEAD_BYTES:
        view_BGSD.sum()
    return view_BGSD


def _copy(stored_BGSD: torch.Tensor, seen: slice) -> torch.Tensor:
    """The slice in memory of its own: kernels round by how an address is aligned, too."""
    return stored_BGSD[:, :, seen].clone()
