"""One Transformer block: attention and a squared-ReLU MLP, each on a normed residual stream.

Shapes: B batch, T positions, C channels, E value channels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from nanochat_core.model.attention import Attention
from nanochat_core.model.config import MLP_FACTOR, ModelConfig
from nanochat_core.model.layers import Embedding, Linear, norm


class MLP(nn.Module):
    """`W_proj relu(W_fc x)^2` (squared ReLU: Primer, arXiv:2109.08668)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = Linear(config.n_embd, MLP_FACTOR * config.n_embd)
        self.proj = Linear(MLP_FACTOR * config.n_embd, config.n_embd)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Map (B, T, C) to (B, T, C)."""
        out_BTC: torch.Tensor = self.proj(F.relu(self.fc(x_BTC)).square())
        return out_BTC


class Shared(NamedTuple):
    """What all blocks see alike during one forward pass; `x0` is what the first of them reads."""

    tokens_BT: torch.Tensor
    x0_BTC: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor]


class Own(NamedTuple):
    """What the model keeps for one block: how much of `x` and of `x0` it reads, and two tables.

    Both factors are tensors without axes: a compiler would build numbers in, block by block.
    """

    resid: torch.Tensor
    x0: torch.Tensor
    value_embedding: Embedding | None
    band: torch.Tensor


class Block(nn.Module):
    """`x + attn(norm(x))`, then `x + mlp(norm(x))`, with x first mixed with the trunk's start."""

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__()
        self.attn = Attention(config, block)
        self.mlp = MLP(config)

    def forward(self, x_BTC: torch.Tensor, shared: Shared, own: Own) -> torch.Tensor:
        """Mix, then add both sub-layers to the residual stream."""
        x_BTC = own.resid * x_BTC + own.x0 * shared.x0_BTC
        values_BTE = None
        if own.value_embedding is not None:
            values_BTE = own.value_embedding(shared.tokens_BT).to(x_BTC.dtype)
        attended_BTC: torch.Tensor = self.attn(
            norm(x_BTC), values_BTE, rotary=shared.rotary, band=own.band
        )
        x_BTC = x_BTC + attended_BTC
        out_BTC: torch.Tensor = x_BTC + self.mlp(norm(x_BTC))
        return out_BTC
