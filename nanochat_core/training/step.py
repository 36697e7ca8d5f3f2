"""One optimizer step: a function of the state and the step's micro-batches.

B rows of a micro-batch, T sequence length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from nanochat_core.distributed.collectives import agree_any
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.optim.gradient_sum import GradientSum
from nanochat_core.optim.recipe import ScheduleRecipe
from nanochat_core.optim.schedules import (
    lr_multiplier,
    muon_momentum,
    weight_decay_multiplier,
)
from nanochat_core.training.state import TrainState


class LossFunction(Protocol):
    """The loss of a micro-batch, a float32 scalar in nats."""

    def __call__(
        self,
        inputs_BT: torch.Tensor,
        targets_BT: torch.Tensor,
        token_weights_BT: torch.Tensor | None = None,
        /,
    ) -> torch.Tensor:
        """The sum of the cross entropies of all targets, each times its weight if there are any."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass of one rank.

    `loss_weight` turns the summed loss into this micro-batch's share of the step's mean, so that
    the shares of all micro-batches on all ranks add up to the loss. `token_weights_BT` (float32)
    weighs every target by itself before that. Where all of those are 0, `has_gradient` may be
    False: the pass is left out, and counts as the zeros that it would have given.
    """

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor
    loss_weight: float
    token_weights_BT: torch.Tensor | None = None
    has_gradient: bool = True

    def to(self, device: torch.device) -> "MicroBatch":
        """The same micro-batch on a device."""
        weights_BT = self.token_weights_BT
        return replace(
            self,
            inputs_BT=self.inputs_BT.to(device),
            targets_BT=self.targets_BT.to(device),
            token_weights_BT=None if weights_BT is None else weights_BT.to(device),
        )


@dataclass(frozen=True)
class StepRates:
    """What the schedules say for one step."""

    lr_multiplier: float
    momentum: float
    weight_decay_multiplier: float


def rates_at(step: int, num_steps: int, schedule: ScheduleRecipe) -> StepRates:
    """The schedules at a step; pure functions of the step, never read from saved state."""
    return StepRates(
        lr_multiplier=lr_multiplier(step, num_steps, schedule),
        momentum=muon_momentum(step, num_steps, schedule),
        weight_decay_multiplier=weight_decay_multiplier(step, num_steps, schedule),
    )


def train_step(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    rates: StepRates,
    *,
    loss_function: LossFunction,
    gradients: GradientSum,
    ranks: Ranks,
) -> torch.Tensor:
    """Run the micro-batches and update the weights; returns this rank's share of the mean loss.

    The result is a float32 scalar on the device, so that no host has to wait for it. In float16
    a step whose gradients overflow on any rank is skipped by all of them.
    """
    scale = state.loss_scale.scale
    loss = torch.zeros((), device=ranks.device)
    for batch in micro_batches:
        if not batch.has_gradient:
            _set_zero_gradients(state)
            gradients.add()
            continue
        tensors = (batch.inputs_BT, batch.targets_BT, batch.token_weights_BT)
        share = loss_function(*tensors) * batch.loss_weight
        (share * scale if state.loss_scale.enabled else share).backward()  # type: ignore[no-untyped-call]
        gradients.add()
        loss += share.detach()
    gradients.total()
    overflowed = state.loss_scale.enabled and agree_any(_any_not_finite(state), ranks)
    if not overflowed:
        state.optimizer.step(
            lr_multiplier=rates.lr_multiplier,
            momentum=rates.momentum,
            weight_decay_multiplier=rates.weight_decay_multiplier,
            grad_scale=1.0 / scale,
        )
    state.loss_scale.update(overflowed=overflowed)
    state.optimizer.zero_grad()
    return loss


def _set_zero_gradients(state: TrainState) -> None:
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def _any_not_finite(state: TrainState) -> bool:
    grads = [p.grad for p in state.model.parameters() if p.grad is not None]
    return not all(bool(torch.isfinite(grad).all()) for grad in grads)
