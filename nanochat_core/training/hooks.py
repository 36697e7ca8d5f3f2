"""Hooks of the training loop: metrics, progress, checkpoints, evaluations."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from nanochat_core.distributed.bandwidth import Bandwidth, describe
from nanochat_core.distributed.collectives import agree_any
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import CheckpointError, TrainingError
from nanochat_core.logs import JsonLines, Progress
from nanochat_core.training.checkpoints import CheckpointWriter
from nanochat_core.training.loop import StepMetrics
from nanochat_core.training.state import TrainState

log = logging.getLogger(__name__)

METRICS_ATTACHMENT = "metrics.jsonl"
MIN_SECONDS = 1e-6


def never_at(_step: int) -> bool:
    """At no step."""
    return False


@dataclass
class MetricsHook:
    """Writes metrics.jsonl (rank 0) with the names that the reference logs, and the progress.

    A line's loss is of the steps that the device has come to the end of; the last line has all.
    """

    lines: JsonLines
    progress: Progress
    num_steps: int
    tokens_per_step: int
    flops_per_token: int
    peak_flops: float | None
    log_every: int

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Every step updates the progress; every `log_every` steps write a line."""
        is_due = state.step % self.log_every == 0 or state.step == self.num_steps
        # Elsewhere a wait would leave the device without work, and be counted as nobody's time.
        if is_due and (state.step == self.num_steps or state.watch.count == 0):
            state.watch.settle()
        self.progress.update(state.step, f"loss {state.smooth_loss:.3f}")
        if not is_due:
            return
        tokens_per_second = self.tokens_per_step / metrics.seconds
        flops = self.flops_per_token * tokens_per_second
        progress = f"step {state.step:,} of {self.num_steps:,}"
        log.info("%s: loss %.3f, %d tokens/s", progress, state.smooth_loss, tokens_per_second)
        self.lines.write(
            {
                "step": state.step,
                "total_training_time": round(state.training_seconds, 3),
                "total_training_flops": self.flops_per_token * self.tokens_per_step * state.step,
                "train/loss": state.smooth_loss,
                "train/lrm": metrics.rates.lr_multiplier,
                "train/dt": metrics.seconds,
                "train/tok_per_sec": int(tokens_per_second),
                "train/mfu": flops / self.peak_flops if self.peak_flops else None,
            }
        )

    def at_end(self, state: TrainState) -> None:
        """No line follows."""
        self.lines.close()


@dataclass
class RewardHook:
    """Writes metrics.jsonl (rank 0) of reinforcement learning, and the progress.

    `measured` gives what the rollouts of the last step were like, `rl/reward` among it.
    """

    lines: JsonLines
    progress: Progress
    num_steps: int
    log_every: int
    measured: Callable[[], Mapping[str, float]]

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Every step updates the progress; every `log_every` steps write a line."""
        values = self.measured()
        message = f"reward {values['rl/reward']:.3f}"
        self.progress.update(state.step, message)
        if state.step % self.log_every and state.step != self.num_steps:
            return
        log.info("step %d of %d: %s", state.step, self.num_steps, message)
        self.lines.write(
            {
                "step": state.step,
                "total_training_time": round(state.training_seconds, 3),
                **values,
                "train/loss": metrics.loss_nats,
                "train/lrm": metrics.rates.lr_multiplier,
                "train/dt": metrics.seconds,
            }
        )

    def at_end(self, state: TrainState) -> None:
        """No line follows."""
        self.lines.close()


@dataclass(frozen=True)
class CommunicationHook:
    """Says once what the exchange between ranks adds to a step, by the bandwidth measured."""

    bandwidth: Bandwidth
    at_step: int

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """At a step that nothing is compiled in any more."""
        if state.step == self.at_step:
            # The step has the communication in it.
            alone = max(metrics.seconds - self.bandwidth.seconds_per_step, MIN_SECONDS)
            log.info("%s", describe(self.bandwidth, alone))

    def at_end(self, state: TrainState) -> None:
        """It was said."""


@dataclass
class CheckpointHook:
    """Saves every `every` steps or `minutes`, before evaluations, and at the end.

    Put it before any evaluation; `is_evaluated` says at which steps there will be one. While
    losses are far too high nothing is saved but the end, which might replace the last good
    checkpoint; what is due then is made up for.
    """

    writer: CheckpointWriter
    ranks: Ranks
    every: int
    metrics_path: Path | None
    minutes: float = math.inf
    is_evaluated: Callable[[int], bool] = never_at
    _last_save: float = field(default_factory=time.monotonic)
    _last_step: int = -1
    _is_owed: bool = False

    def is_due_by_time(self) -> bool:
        """Whether the last save is too long ago; ranks vote on it, as their clocks differ."""
        return time.monotonic() - self._last_save > 60.0 * self.minutes

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Start a save when it is due."""
        # A wish may be heard a step late, when the save of the step before has granted it.
        is_asked = metrics.save and state.step > self._last_step + 1
        is_due = is_asked or state.step % self.every == 0 or self.is_evaluated(state.step)
        if is_due or self._is_owed:
            state.watch.settle()
            self._is_owed = state.watch.bad_in_a_row > 0
            if not self._is_owed:
                self._save(state)

    def at_end(self, state: TrainState) -> None:
        """Save where training ended and wait until it is on disk."""
        try:
            self._save(state)
        except CheckpointError as error:
            # It tells of the save before. All that was learnt since is saved now or lost.
            log.warning("%s", error)
            self._save(state)
        self.writer.wait()

    def _save(self, state: TrainState) -> None:
        if not state.weights_are_finite():
            raise TrainingError(
                f"weights are not finite after step {state.step}, so it was not saved. "
                "The last good checkpoint is kept; lower the learning rates "
                "(pretrain.optimizer.lr_scale, sft.lr_scale, rl.lr_scale) or use float32"
            )
        attachments = {}
        if self.metrics_path is not None and self.metrics_path.exists():
            attachments[METRICS_ATTACHMENT] = self.metrics_path.read_bytes()
        self.writer.save(
            state.step,
            state.shards(self.ranks.rank, self.ranks.world_size),
            state.scalars(),
            attachments,
        )
        self._last_save, self._last_step = time.monotonic(), state.step


@dataclass
class EvaluationHook:
    """Logs what `evaluate` measures every `every` steps (-1: never); put it after the checkpoint.

    `evaluate` runs on every rank and gives the same names each time, of which `name` is one; rank 0
    alone has a `metrics_path`. `at_ends`: also before the first step and after the last. A resume
    asks again for what the checkpoint's metrics lack.
    """

    evaluate: Callable[[], Mapping[str, float]]
    name: str
    metrics_path: Path | None
    ranks: Ranks
    every: int
    num_steps: int
    at_ends: bool = False

    def at_start(self, state: TrainState) -> None:
        """Make up for what was measured after the checkpoint had been written."""
        self._evaluate_if_due(state)

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Evaluate when it is due; the last step is not over before its weights are saved."""
        if state.step < self.num_steps:
            self._evaluate_if_due(state)

    def at_end(self, state: TrainState) -> None:
        """Evaluate the last step, which is saved by now."""
        if state.step == self.num_steps:
            self._evaluate_if_due(state)

    def _evaluate_if_due(self, state: TrainState) -> None:
        if not self.is_due(state.step) or self._is_recorded(state.step):
            return
        values = self.evaluate()
        if self.metrics_path is not None:
            with closing(JsonLines(self.metrics_path)) as lines:
                lines.write({"step": state.step, **values})

    def is_due(self, step: int) -> bool:
        """Whether a step is evaluated once it is done."""
        if self.every < 0:
            return False
        if step in (0, self.num_steps) and self.at_ends:
            return True
        return step > 0 and step % self.every == 0

    def _is_recorded(self, step: int) -> bool:
        own = self.metrics_path is not None and has_line(self.metrics_path, step, self.name)
        return agree_any(own, self.ranks)


def has_line(path: Path, step: int, name: str) -> bool:
    """Whether metrics.jsonl has a value of that name at that step."""
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return any(values["step"] == step and name in values for values in lines)
