"""What MuonAdamW updates one after the other, each sharded over ranks in its own way.

A unit starts the sum of its gradients over ranks, then updates the part that this rank owns and
starts gathering the weights, then finishes: so the communication of one overlaps the arithmetic of
another.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.distributed.tree_sum import Reduction
from nanochat_core.errors import TrainingError
from nanochat_core.optim.adamw import Scalar
from nanochat_core.optim.groups import StateShard
from nanochat_core.optim.kernels import Kernels


@dataclass(frozen=True)
class StepNumbers:
    """What one step is told; `step` counts from 1.

    `healthy`, a 0-d bool on the device, says whether the gradients are finite where the host does
    not know that yet; None means that they are.
    """

    step: int
    lr_multiplier: float
    momentum: float
    weight_decay_multiplier: float
    grad_scale: float
    healthy: Tensor | None = None

    def gated(self, value: Scalar) -> Scalar:
        """The number, or 0 in a step that must change nothing."""
        return value if self.healthy is None else value * self.healthy


@dataclass(frozen=True)
class Context:
    """What all units share."""

    ranks: Ranks
    reduction: Reduction
    kernels: Kernels
    work_dtype: torch.dtype


class Unit(Protocol):
    """Parameters that are updated together."""

    is_replicated: bool

    def start_sum(self) -> None:
        """Start summing the gradients over ranks."""

    def update(self, numbers: StepNumbers) -> None:
        """Update what this rank owns and start sharing it."""

    def finish(self) -> None:
        """Wait until every parameter is whole again."""

    def shards(self) -> Iterator[StateShard]:
        """The state that this rank holds."""

    def full_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the state of all ranks."""


def gradient_of(name: str, param: Parameter) -> Tensor:
    """The gradient of a parameter.

    Raises:
        TrainingError: there is none.
    """
    if param.grad is None:
        raise TrainingError(
            f"{name} has no gradient; run backward, and GradientSum.total() if gradients are "
            "summed over micro-batches, before the step"
        )
    return param.grad


def padded(tensor: Tensor, num_rows: int) -> Tensor:
    """The tensor with rows of zeros after it, up to `num_rows` of them in all."""
    missing = num_rows - tensor.shape[0]
    if missing == 0:
        return tensor
    return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))])
