"""One optimizer step: a function of the state and the step's micro-batches.

B rows of a micro-batch, T sequence length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(inputs (B, T), targets (B, T)) -> summed cross entropy in nats, float32 scalar."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass of one rank.

    `loss_weight` turns the summed loss into this micro-batch's share of the step's mean, so that
    the shares of all micro-batches on all ranks add up to the loss.
    """

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor
    loss_weight: float


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
        share = loss_function(batch.inputs_BT, batch.targets_BT) * batch.loss_weight
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


def _any_not_finite(state: TrainState) -> bool:
    grads = [p.grad for p in state.model.parameters() if p.grad is not None]
    return not all(bool(torch.isfinite(grad).all()) for grad in grads)
