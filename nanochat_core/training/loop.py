"""The training loop: step, account, then hooks in the order that the job wrote them."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from nanochat_core.distributed.collectives import agree_any, all_reduce
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import JobStoppedError, TrainingError
from nanochat_core.optim.gradient_sum import GradientSum
from nanochat_core.optim.recipe import ScheduleRecipe
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import (
    LossFunction,
    MicroBatch,
    StepRates,
    rates_at,
    train_step,
)

log = logging.getLogger(__name__)

WARM_STEPS = 10
"""Steps of a process that do not count as training time: compilation happens in them."""


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured."""

    loss_nats: float
    rates: StepRates
    seconds: float


class Hook(Protocol):
    """Something that looks at the state after each step, and once at the end."""

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Called after every step; `state.step` counts finished steps."""

    def at_end(self, state: TrainState) -> None:
        """Called once, when training ends or is asked to stop."""


@runtime_checkable
class StartingHook(Protocol):
    """A hook that also looks at the state before the first step of this process."""

    def at_start(self, state: TrainState) -> None:
        """Called once; after a resume `state.step` is the step of the checkpoint.

        What the other process did after it had saved that step is lost: do it again here.
        """


@dataclass(frozen=True)
class Trainer:
    """The fixed parts of a run; all that changes is in `TrainState`.

    `batches` and hooks may raise JobStoppedError, on all ranks alike: a step that has no batches
    yet leaves no trace.
    """

    num_steps: int
    schedule: ScheduleRecipe
    loss_function: LossFunction
    batches: Callable[[int], Sequence[MicroBatch]]
    ranks: Ranks
    stop_requested: Callable[[], bool]
    hooks: Sequence[Hook]

    def train(self, state: TrainState) -> None:
        """Run until the last step; JobStoppedError after a stop request, once hooks have saved."""
        try:
            self._run(state)
        except JobStoppedError as stopped:
            log.info("%s", stopped)
        for hook in self.hooks:
            hook.at_end(state)
        if state.step < self.num_steps:
            raise JobStoppedError(f"stopped on request after step {state.step}")

    def _run(self, state: TrainState) -> None:
        gradients = GradientSum(list(state.model.parameters()))
        first_step = state.step
        for hook in self.hooks:
            if isinstance(hook, StartingHook):
                hook.at_start(state)
        while state.step < self.num_steps:
            metrics = self._step(state, gradients, warm=state.step - first_step < WARM_STEPS)
            for hook in self.hooks:
                hook.after_step(state, metrics)
            if agree_any(self.stop_requested(), self.ranks):
                break

    def _step(self, state: TrainState, gradients: GradientSum, *, warm: bool) -> StepMetrics:
        started = time.perf_counter()
        rates = rates_at(state.step, self.num_steps, self.schedule)
        share = train_step(
            state,
            self.batches(state.step),
            rates,
            loss_function=self.loss_function,
            gradients=gradients,
            ranks=self.ranks,
        )
        loss = self._mean_loss(state, share)
        state.step += 1
        state.observe_loss(loss)
        seconds = time.perf_counter() - started
        if not warm:
            state.training_seconds += seconds
        return StepMetrics(loss, rates, seconds)

    def _mean_loss(self, state: TrainState, share: torch.Tensor) -> float:
        loss = float(all_reduce(share, self.ranks).wait())
        if not math.isfinite(loss) and not state.loss_scale.enabled:
            raise TrainingError(
                f"the loss of step {state.step} is {loss}; nothing after the last checkpoint was "
                "saved. Lower the learning rates (pretrain.optimizer.lr_scale, sft.lr_scale, "
                "rl.lr_scale) or use float32"
            )
        return loss
