"""AdamW with decoupled decay (arXiv:1711.05101), in float32 for parameters of any dtype."""

from typing import NamedTuple

import torch
from torch import Tensor

Scalar = float | Tensor
"""A number, or a 0-d CPU tensor that a compiled function can take without compiling again."""


class AdamWScalars(NamedTuple):
    """The numbers of one update; bias corrections are 1 - beta^t."""

    lr: Scalar
    weight_decay: Scalar
    one_minus_beta1: Scalar
    one_minus_beta2: Scalar
    eps: Scalar
    bias_correction1: Scalar
    bias_correction2: Scalar
    grad_scale: Scalar
    healthy: Tensor | None = None


def adamw_update(
    weight: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, scalars: AdamWScalars
) -> None:
    """Update a weight and its float32 moments in place; all four have one shape.

    The decay shrinks the weight first; the weight is rounded to its own dtype once, at the end.
    """
    grad = harmless(grad.float() * scalars.grad_scale, exp_avg, scalars.healthy)
    exp_avg.lerp_(grad, scalars.one_minus_beta1)
    exp_avg_sq.lerp_(grad.square(), scalars.one_minus_beta2)
    denominator = (exp_avg_sq / scalars.bias_correction2).sqrt() + scalars.eps
    step = exp_avg / denominator * (scalars.lr / scalars.bias_correction1)
    weight.copy_(weight.float() * (1 - scalars.lr * scalars.weight_decay) - step)


def harmless(grad: Tensor, running_mean: Tensor, healthy: Tensor | None) -> Tensor:
    """The gradient, or, where the step is not `healthy`, one that moves its running mean nowhere.

    None: the step is known to be healthy. A 0-d bool on the device lets it decide by itself, with
    the rates and other weights of the step at 0 then (`StepNumbers.gated`).
    """
    return grad if healthy is None else torch.where(healthy, grad, running_mean)
