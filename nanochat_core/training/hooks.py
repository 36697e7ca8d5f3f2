"""Hooks of the training loop: metrics, progress, checkpoints, validation."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
                "(pretrain.optimizer.lr_scale, sft.lr_scale) or use float32"
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
class ValidationHook:
    """Logs `val/bpb` every `every` steps; -1 is never."""

    evaluate: Callable[[], float]
    lines: JsonLines | None
    every: int

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Evaluate when it is due."""
        if self.every > 0 and state.step % self.every == 0:
            self._evaluate(state)

    def at_end(self, state: TrainState) -> None:
        """The evaluation station measures the final model."""

    def _evaluate(self, state: TrainState) -> None:
        bits_per_byte = self.evaluate()
        if self.lines is not None:
            self.lines.write({"step": state.step, "val/bpb": bits_per_byte})
