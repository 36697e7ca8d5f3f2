"""Hooks of the training loop: metrics, progress, checkpoints, evaluations."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from nanochat_core.distributed.collectives import agree_any
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import TrainingError
from nanochat_core.logs import JsonLines, Progress
from nanochat_core.training.checkpoints import CheckpointWriter
from nanochat_core.training.loop import StepMetrics
from nanochat_core.training.state import TrainState

log = logging.getLogger(__name__)

METRICS_ATTACHMENT = "metrics.jsonl"


@dataclass
class MetricsHook:
    """Writes metrics.jsonl (rank 0) with the names that the reference logs, and the progress."""

    lines: JsonLines
    progress: Progress
    num_steps: int
    tokens_per_step: int
    flops_per_token: int
    peak_flops: float | None
    log_every: int

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Every step updates the progress; every `log_every` steps write a line."""
        message = f"loss {state.smooth_loss:.3f}"
        self.progress.update(state.step, message)
        last = state.step == self.num_steps
        if state.step % self.log_every and not last:
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


@dataclass
class CheckpointHook:
    """Saves every `every` steps and at the end; put it before any evaluation."""

    writer: CheckpointWriter
    ranks: Ranks
    every: int
    metrics_path: Path | None

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Start a save when it is due."""
        if state.step % self.every == 0:
            self._save(state)

    def at_end(self, state: TrainState) -> None:
        """Save where training ended and wait until it is on disk."""
        self._save(state)
        self.writer.wait()

    def _save(self, state: TrainState) -> None:
        if not math.isfinite(state.loss_ema) or not state.weights_are_finite():
            raise TrainingError(
                f"weights or loss are not finite after step {state.step}, so it was not saved. "
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
        if not self._is_due(state.step) or self._is_recorded(state.step):
            return
        values = self.evaluate()
        if self.metrics_path is not None:
            with closing(JsonLines(self.metrics_path)) as lines:
                lines.write({"step": state.step, **values})

    def _is_due(self, step: int) -> bool:
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
