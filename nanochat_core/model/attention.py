"""Causal self-attention with sliding windows, grouped key heads and gated value embeddings.

Shapes: B batch, T query positions, S key positions, C channels, H query heads, G key heads,
D head dim, E = G * D, Q queries of one block.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from nanochat_core.model.config import VALUE_GATE_CHANNELS, ModelConfig
from nanochat_core.model.layers import Linear, norm
from nanochat_core.model.rotary import rotate

QUERY_BLOCK = 512
"""Queries of one masked attention call: a mask never grows with the square of the input."""
QK_SCALE = 1.2
"""Sharpens attention after QK norm, which has no scale of its own."""
VALUE_GATE_SCALE = 3.0


class Backend(Protocol):
    """Causal attention of a whole row, forward and backward, as training needs it."""

    def __call__(
        self, q_BTHD: torch.Tensor, k_BTGD: torch.Tensor, v_BTGD: torch.Tensor, *, window: int
    ) -> torch.Tensor:
        """Each position over itself and `window` before it; (B, T, H, D) in the dtype of `q`."""


def band_mask(window: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Which keys a block of queries sees: bool (Q, window + Q), of which every mask is a slice.

    Column j is the key at `j - window` from the first query of the block; a query sees itself
    and `window` keys before it.
    """
    queries_Q1 = torch.arange(QUERY_BLOCK, device=device)[:, None]
    columns_S = torch.arange(window + QUERY_BLOCK, device=device)
    return (columns_S >= queries_Q1) & (columns_S <= queries_Q1 + window)


def repeat_heads(x_BGSD: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Give every query head its key head: (B, G, S, D) to (B, H, S, D)."""
    batch, groups, length, head_dim = x_BGSD.shape
    if groups == num_heads:
        return x_BGSD
    repeated = x_BGSD[:, :, None].expand(batch, groups, num_heads // groups, length, head_dim)
    return repeated.reshape(batch, num_heads, length, head_dim)


def attend(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    *,
    window: int,
    band: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the last T of S positions, each over itself and `window` keys before it.

    `band` is `band_mask(window)` on the device of `q`, made here where none is given. A window that
    covers everything uses the causal kernel and no band; else queries go in blocks, each with the
    slice of keys that it can see.
    """
    num_queries, num_keys = q_BHTD.size(2), k_BGSD.size(2)
    k_BHSD = repeat_heads(k_BGSD, q_BHTD.size(1))
    v_BHSD = repeat_heads(v_BGSD, q_BHTD.size(1))
    if num_queries == num_keys and window >= num_keys - 1:
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=True)
    band = band_mask(window, q_BHTD.device) if band is None else band
    offset = num_keys - num_queries
    outputs = []
    for start in range(0, num_queries, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, num_queries)
        first_key = max(0, offset + start - window)
        last_key = offset + stop
        first_column = window - (offset + start - first_key)
        mask = band[: stop - start, first_column : first_column + last_key - first_key]
        outputs.append(
            F.scaled_dot_product_attention(
                q_BHTD[:, :, start:stop],
                k_BHSD[:, :, first_key:last_key],
                v_BHSD[:, :, first_key:last_key],
                attn_mask=None if num_queries == 1 else mask,
            )
        )
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


class Attention(nn.Module):
    """One attention layer; `value_gate` exists where the block owns a value embedding table.

    `attend_fn` attends where there is no cache; None is `attend` with the band of the model.
    """

    attend_fn: Backend | None

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_dim, self.window = config.head_dim, config.windows[block]
        self.attend_fn = None
        self.q = Linear(config.n_embd, config.n_embd)
        self.k = Linear(config.n_embd, config.kv_dim)
        self.v = Linear(config.n_embd, config.kv_dim)
        self.out = Linear(config.n_embd, config.n_embd)
        self.gate_channels = min(VALUE_GATE_CHANNELS, config.n_embd)
        self.value_gate = (
            Linear(self.gate_channels, config.n_kv_head)
            if config.has_value_embedding(block)
            else None
        )

    def forward(
        self,
        x_BTC: torch.Tensor,
        values_BTE: torch.Tensor | None,
        *,
        rotary: tuple[torch.Tensor, torch.Tensor],
        band: torch.Tensor,
    ) -> torch.Tensor:
        """Attend within `x` (normed block input); returns (B, T, C)."""
        batch, length, channels = x_BTC.shape
        q_BTHD = self.q(x_BTC).view(batch, length, self.n_head, self.head_dim)
        k_BTGD = self.k(x_BTC).view(batch, length, self.n_kv_head, self.head_dim)
        v_BTGD = self._values(x_BTC, values_BTE)
        q_BTHD = norm(rotate(q_BTHD, *rotary)) * QK_SCALE
        k_BTGD = norm(rotate(k_BTGD, *rotary)) * QK_SCALE
        if self.attend_fn is not None:
            y_BTHD = self.attend_fn(q_BTHD, k_BTGD, v_BTGD, window=self.window)
        else:
            q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGD))
            y_BTHD = attend(q, k, v, window=self.window, band=band).transpose(1, 2)
        out_BTC: torch.Tensor = self.out(y_BTHD.reshape(batch, length, channels))
        return out_BTC

    def _values(self, x_BTC: torch.Tensor, values_BTE: torch.Tensor | None) -> torch.Tensor:
        """Projected values plus the gated value embedding (ResFormer, arXiv:2410.17897)."""
        shape = (*x_BTC.shape[:2], self.n_kv_head, self.head_dim)
        v_BTGD: torch.Tensor = self.v(x_BTC).view(shape)
        if self.value_gate is None or values_BTE is None:
            return v_BTGD
        gate_BTG: torch.Tensor = VALUE_GATE_SCALE * torch.sigmoid(
            self.value_gate(x_BTC[..., : self.gate_channels])
        )
        return v_BTGD + gate_BTG[..., None] * values_BTE.view(shape)
