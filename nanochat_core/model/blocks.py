"""One Transformer block: attention and a squared-ReLU MLP, each on a normed residual stream.

Shapes: B batch, T positions, C channels, E value channels.
"""

import torch
import torch.nn.functional as F
from torch import nn

from nanochat_core.model.attention import Attention, LayerCache
from nanochat_core.model.config import MLP_FACTOR, ModelConfig
from nanochat_core.model.layers import Linear, norm


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


class Block(nn.Module):
    """`x + attn(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__()
        self.attn = Attention(config, block)
        self.mlp = MLP(config)

    def forward(
        self,
        x_BTC: torch.Tensor,
        values_BTE: torch.Tensor | None,
        *,
        rotary: tuple[torch.Tensor, torch.Tensor],
        band: torch.Tensor,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Add both sub-layers to the residual stream."""
        h_BTC = norm(x_BTC)
        x_BTC = x_BTC + self.attn(h_BTC, values_BTE, rotary=rotary, band=band, cache=cache)
        out_BTC: torch.Tensor = x_BTC + self.mlp(norm(x_BTC))
        return out_BTC
