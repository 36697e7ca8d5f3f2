"""The training loop: step, account, then hooks in the order that the job wrote them."""

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import JobStoppedError
from nanochat_core.optim.gradient_sum import GradientSum
from nanochat_core.optim.recipe import ScheduleRecipe
from nanochat_core.training.device_batch import MEMORY_ERRORS, is_out_of_memory
from nanochat_core.training.reading import NO_VOTES, Reading, Votes
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
    """What one step measured; `save` and `stop` are what the ranks have agreed on by now."""

    reading: Reading
    rates: StepRates
    seconds: float
    save: bool = False
    stop: bool = False

    @property
    def loss_nats(self) -> float:
        """Mean loss of the step; waits for the device."""
        return self.reading.wait().loss_nats


def never() -> bool:
    """Nothing is asked for."""
    return False


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
    yet leaves no trace. `run_ahead` (for GPUs): the host prepares the next step while the device
    still computes, and learns of losses and of other ranks' wishes one step late.
    """

    num_steps: int
    schedule: ScheduleRecipe
    loss_function: LossFunction
    batches: Callable[[int], Sequence[MicroBatch]]
    ranks: Ranks
    stop_requested: Callable[[], bool]
    hooks: Sequence[Hook]
    save_requested: Callable[[], bool] = never
    run_ahead: bool = False

    def train(self, state: TrainState) -> None:
        """Run until the last step; JobStoppedError after a stop request, once hooks have saved.

        Memory that runs out is raised once the last whole step is saved; several ranks cannot
        save without the one that failed, and go back to their last checkpoint.
        """
        try:
            self._run(state)
        except JobStoppedError as stopped:
            log.info("%s", stopped)
        except MEMORY_ERRORS as error:
            if is_out_of_memory(error) and self.ranks.world_size == 1 and state.is_whole:
                # What the frames of the error hold is much of the memory.
                traceback.clear_frames(error.__traceback__)
                state.optimizer.zero_grad()
                self._end(state)
            raise
        self._end(state)
        if state.step < self.num_steps:
            raise JobStoppedError(f"stopped on request after step {state.step}")

    def _end(self, state: TrainState) -> None:
        state.watch.settle()
        for hook in self.hooks:
            hook.at_end(state)

    def _run(self, state: TrainState) -> None:
        gradients = GradientSum(list(state.model.parameters()))
        first_step, last = state.step, None
        for hook in self.hooks:
            if isinstance(hook, StartingHook):
                hook.at_start(state)
        while state.step < self.num_steps:
            metrics = self._step(state, gradients, last, warm=state.step - first_step < WARM_STEPS)
            last = metrics.reading
            for hook in self.hooks:
                hook.after_step(state, metrics)
            if metrics.stop or (self.ranks.world_size == 1 and self.stop_requested()):
                break

    def _step(
        self, state: TrainState, gradients: GradientSum, last: Reading | None, *, warm: bool
    ) -> StepMetrics:
        started = time.perf_counter()
        rates = rates_at(state.step, self.num_steps, self.schedule)
        reading = train_step(
            state,
            self.batches(state.step),
            rates,
            loss_function=self.loss_function,
            gradients=gradients,
            ranks=self.ranks,
            votes=self._votes(),
            run_ahead=self.run_ahead,
        )
        state.step += 1
        state.watch.add(state.step, reading, leave=int(self.run_ahead))
        agreed = self._agreed(last if self.run_ahead else reading)
        seconds = time.perf_counter() - started
        if not warm:
            state.training_seconds += seconds
        return StepMetrics(reading, rates, seconds, save=agreed.save, stop=agreed.stop)

    def _votes(self) -> Votes:
        """One rank alone has nobody to tell."""
        if self.ranks.world_size == 1:
            return NO_VOTES
        return Votes(stop=self.stop_requested(), save=self.save_requested())

    def _agreed(self, reading: Reading | None) -> Votes:
        """What the ranks want, as all of them know it at this step; one rank alone just asks."""
        if self.ranks.world_size == 1:
            return Votes(save=self.save_requested())
        if reading is None:
            return NO_VOTES
        values = reading.wait()
        return Votes(stop=values.stop, save=values.save)
