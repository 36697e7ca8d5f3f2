"""One optimizer step: a function of the state and the step's micro-batches.

B rows of a micro-batch, T sequence length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.optim.gradient_sum import GradientSum
from nanochat_core.optim.recipe import ScheduleRecipe
from nanochat_core.optim.schedules import (
    lr_multiplier,
    muon_momentum,
    weight_decay_multiplier,
)
from nanochat_core.training.reading import NO_VOTES, Reading, Votes
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
    votes: Votes = NO_VOTES,
    run_ahead: bool = False,
) -> Reading:
    """Run the micro-batches and update the weights; returns what the step measured.

    A loss or gradient that is not finite on any rank leaves weights and moments of all ranks as
    they are. With `run_ahead` the device decides about that by itself and the host goes on at
    once; else, and in float16, whose next scale depends on it, the host waits for the answer.
    """
    loss = _backward(state, micro_batches, loss_function, gradients, ranks)
    summed = [p.grad for p in state.model.parameters() if p.grad is not None]
    reading = Reading.of_step(loss, summed, votes, ranks)
    if run_ahead and not state.loss_scale.enabled:
        _update(state, rates, reading.healthy)
    else:
        healthy = reading.wait().healthy
        if healthy:
            _update(state, rates, None)
        state.loss_scale.update(overflowed=not healthy)
    state.optimizer.zero_grad()
    return reading


def _backward(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    loss_function: LossFunction,
    gradients: GradientSum,
    ranks: Ranks,
) -> torch.Tensor:
    """Gradients of this rank's micro-batches; returns its share of the mean loss, on the device."""
    loss = torch.zeros((), device=ranks.device)
    for batch in micro_batches:
        if not batch.has_gradient:
            _set_zero_gradients(state)
            gradients.add()
            continue
        tensors = (batch.inputs_BT, batch.targets_BT, batch.token_weights_BT)
        share = loss_function(*tensors) * batch.loss_weight
        scaled = share * state.loss_scale.scale if state.loss_scale.enabled else share
        scaled.backward()  # type: ignore[no-untyped-call]
        gradients.add()
        loss += share.detach()
    gradients.total()
    return loss


def _update(state: TrainState, rates: StepRates, healthy: torch.Tensor | None) -> None:
    state.is_whole = False
    state.optimizer.step(
        lr_multiplier=rates.lr_multiplier,
        momentum=rates.momentum,
        weight_decay_multiplier=rates.weight_decay_multiplier,
        grad_scale=1.0 / state.loss_scale.scale,
        healthy=healthy,
    )
    state.is_whole = True


def _set_zero_gradients(state: TrainState) -> None:
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
