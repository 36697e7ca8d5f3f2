"""The two smallest parts of the model: a bias-free Linear and a norm without parameters.

Shapes: C channels, I input channels, O output channels; `...` any leading axes.
"""

import torch
import torch.nn.functional as F
from torch import nn

from nanochat_core.model.fp8 import fp8_linear

NORM_EPS = torch.finfo(torch.float32).eps
"""Equal for every activation dtype: a change of precision does not change the function."""


class Linear(nn.Module):
    """`x @ weight.T` with float32 master weights, computed in the dtype of `x`.

    The weight is uninitialised memory until `GPT.init_weights` or a checkpoint fills it. With `fp8`
    a forward pass that records gradients is computed in fp8; every other one is not.
    """

    fp8 = False

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., I) to (..., O)."""
        if self.fp8 and torch.is_grad_enabled():
            return fp8_linear(x, self.weight)
        return F.linear(x, self.weight.to(x.dtype))


class Embedding(nn.Module):
    """A table of vectors by token id, in the dtype that it is stored in; filled like `Linear`."""

    def __init__(self, num_rows: int, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, channels, dtype=dtype))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up (...) token ids as (..., C)."""
        return F.embedding(tokens, self.weight)


def norm(x: torch.Tensor) -> torch.Tensor:
    """RMSNorm over the last axis without parameters, statistics in float32 (arXiv:1910.07467)."""
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)
