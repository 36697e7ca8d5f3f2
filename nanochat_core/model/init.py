"""Initial weights: the same bits on every device and rank, because they are drawn on the CPU.

Shapes: L blocks.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nanochat_core.model.gpt import GPT

WTE_STD = 0.8
HEAD_STD = 0.001
MLP_IN_FACTOR = 0.4
GATE_HIGH = 0.02
BACKOUT = 0.2
RESID_FIRST, RESID_DROP = 1.15, 0.10
X0_FIRST, X0_DROP = 0.20, 0.15

Fill = Callable[[torch.Tensor], object]


@torch.no_grad()
def init_weights(model: "GPT", seed: int) -> None:
    """Fill every parameter in place, in the fixed order of `named_parameters`."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        _fill(name, values, model.config.n_embd, generator)
        parameter.copy_(values)


def _fill(name: str, values: torch.Tensor, n_embd: int, generator: torch.Generator) -> None:
    """Draw the initial values of one parameter.

    The uniform half-width sqrt(3 / n_embd) has the variance 1 / n_embd; outputs of attention and
    MLP start at zero, so that every block starts as the identity.
    """
    width = math.sqrt(3.0 / n_embd)
    if name in _SCALARS:
        values.copy_(_SCALARS[name](values.numel()))
    elif name == "wte.weight":
        values.normal_(0.0, WTE_STD, generator=generator)
    elif name == "lm_head.weight":
        values.normal_(0.0, HEAD_STD, generator=generator)
    elif "gate" in name:
        values.uniform_(0.0, GATE_HIGH, generator=generator)
    elif name.endswith(("attn.out.weight", "mlp.proj.weight")):
        values.zero_()
    else:
        half_width = width * MLP_IN_FACTOR if name.endswith("mlp.fc.weight") else width
        values.uniform_(-half_width, half_width, generator=generator)


def _ramp(first: float, drop: float) -> Callable[[int], torch.Tensor]:
    """Values that fall from `first` by `drop` over the blocks."""

    def values(num_blocks: int) -> torch.Tensor:
        fractions_L = torch.arange(num_blocks, dtype=torch.float64) / max(num_blocks - 1, 1)
        return (first - drop * fractions_L).float()

    return values


_SCALARS: dict[str, Callable[[int], torch.Tensor]] = {
    "resid_lambdas": _ramp(RESID_FIRST, RESID_DROP),
    "x0_lambdas": _ramp(X0_FIRST, X0_DROP),
    "smear_lambda": lambda n: torch.zeros(n),
    "backout_lambda": lambda n: torch.full((n,), BACKOUT),
}
