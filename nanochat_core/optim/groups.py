"""What the optimizer is told about parameters, and what it tells checkpoints about its state."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import Parameter

from nanochat_core.errors import ConfigError


@dataclass(frozen=True)
class ParamGroup:
    """Named parameters with one rule and one set of numbers.

    `lr` is already scaled by the dial; Muon multiplies it by sqrt(max(1, rows/cols)) of each
    matrix. Muon takes no `beta1` (its momentum comes with every step) and no `eps`, AdamW no
    `polar_express_steps`.

    Raises:
        ConfigError: a Muon parameter that is not a matrix.
    """

    name: str
    kind: Literal["adamw", "muon"]
    params: tuple[tuple[str, Parameter], ...]
    lr: float
    beta1: float = 0.8
    beta2: float = 0.95
    eps: float = 1e-10
    weight_decay: float = 0.0
    polar_express_steps: int = 5

    def __post_init__(self) -> None:
        if self.kind == "muon":
            for name, param in self.params:
                if param.ndim != 2:
                    raise ConfigError(
                        f"group {self.name}: Muon takes matrices, {name} has shape "
                        f"{tuple(param.shape)}; put it into an adamw group"
                    )


@dataclass(frozen=True)
class StateShard:
    """Rows [start, start + len(tensor)) of the un-padded state tensor `name` of `full_shape`."""

    name: str
    full_shape: tuple[int, ...]
    start: int
    tensor: Tensor
