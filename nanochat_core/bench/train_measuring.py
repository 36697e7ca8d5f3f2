"""What one way to train reaches here: speed, memory, the first step, checkpoints."""

import platform
import resource
import secrets
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from nanochat_core.bench.roofline import measured_matmul_flops, synchronize
from nanochat_core.bench.train_setup import Parts, prepared_batches
from nanochat_core.bench.train_timing import (
    PERCENTILES,
    StepTimes,
    percentile,
    process_seconds,
)
from nanochat_core.errors import ConfigError
from nanochat_core.training.checkpoints import CheckpointWriter
from nanochat_core.training.hardware_peaks import data_sheet_flops
from nanochat_core.training.loop import StepMetrics
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import MicroBatch

Batches = Callable[[int], list[MicroBatch]]
STEPS_AT_A_TIME = 2
"""Steps between two looks at whether a checkpoint is on disk."""


class PeakMemory:
    """The most memory that was in use since this was made."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._before = device, psutil.Process().memory_info().rss
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def meaning(self) -> str:
        """Which memory is counted."""
        if self.device.type == "cuda":
            return "tensors on the device (max_memory_allocated)"
        return "growth of the resident memory of the process"

    @property
    def bytes(self) -> int:
        """The most so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # Kilobytes but on a Mac, where it is bytes: getrusage(2) of each.
        return max(peak * (1 if sys.platform == "darwin" else 1024) - self._before, 0)


@dataclass(frozen=True)
class Timed:
    """The steps of a measurement, in the order in which they are run."""

    first: StepTimes
    warm: StepTimes
    steady: StepTimes
    seconds_to_first_step: float

    @property
    def compile_seconds(self) -> float:
        """What the first steps took longer than later ones: compiling, loading, allocating."""
        early = [*self.first.seconds, *self.warm.seconds]
        return sum(early) - len(early) * percentile(self.steady.seconds, 50)


def run_timed(parts: Parts, batches: Batches, *, warm_up: int, steps: int) -> Timed:
    """Run the first step of this process, some that warm up, and those that count."""
    first = timed_steps(parts, batches, 1)
    synchronize(parts.ranks.device)
    since_start = process_seconds()
    warm = timed_steps(parts, batches, warm_up)
    return Timed(first, warm, timed_steps(parts, batches, steps), since_start)


def timed_steps(parts: Parts, batches: Batches, num_steps: int) -> StepTimes:
    """Run and time some steps."""
    times = StepTimes(parts.ranks.device)
    parts.train(batches, num_steps, [times])
    return times


def measure(
    parts: Parts, memory: PeakMemory, *, warm_up: int, steps: int, checkpoints: int
) -> dict[str, Any]:
    """Everything about one way to train; nothing may have been trained in this process before."""
    batches = prepared_batches(parts)
    timed = run_timed(parts, batches, warm_up=warm_up, steps=steps)
    steady, peak_bytes = timed.steady.seconds, memory.bytes
    report = {
        **speed(parts, steady),
        "peak_memory_bytes": peak_bytes,
        "peak_memory_is": memory.meaning,
        "seconds_to_first_step": round(timed.seconds_to_first_step, 2),
        "compile_seconds": round(timed.compile_seconds, 2),
        "step_seconds": {f"p{p}": round(percentile(steady, p), 6) for p in PERCENTILES},
        "loss_first": round(timed.first.losses[0], 4),
        "loss_last": round(timed.steady.losses[-1], 4),
        "steps": steps,
    }
    if checkpoints:
        report |= checkpoint_cost(parts, batches, checkpoints, statistics.fmean(steady))
    return report


def speed(parts: Parts, seconds: list[float]) -> dict[str, Any]:
    """Tokens a second, and which part of what the device can do that is.

    Both shares are of bfloat16 (or the dtype computed in), also with fp8, so that the two compare.
    """
    ranks, plan = parts.ranks, parts.plan
    tokens_per_second = plan.tokens_per_step * len(seconds) / sum(seconds)
    flops = plan.flops_per_token * tokens_per_second / ranks.world_size
    reached = measured_matmul_flops(ranks.device, parts.dtype)
    promised = data_sheet_flops(device_name(ranks.device)) if ranks.device.type == "cuda" else None
    return {
        "tokens_per_second": round(tokens_per_second),
        "mfu_measured": round(flops / reached, 4),
        "mfu_data_sheet": None if promised is None else round(flops / promised, 4),
        "roofline_flops": round(reached),
        "flops_per_token": plan.flops_per_token,
    }


class Saves:
    """A hook that saves whenever the last checkpoint is on disk, `count` times."""

    def __init__(self, writer: CheckpointWriter, count: int) -> None:
        self.writer, self.left = writer, count

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:  # noqa: ARG002  a hook
        """Save if there is one left to save."""
        if self.left and not self.writer.is_writing:
            self.left -= 1
            self.writer.save(state.step, state.shards(0, 1), state.scalars(), {})

    def at_end(self, state: TrainState) -> None:
        """The writer goes on beside the next steps."""


def checkpoint_cost(
    parts: Parts, batches: Batches, count: int, step_seconds: float
) -> dict[str, float]:
    """How long a save keeps training waiting, and how much longer all steps beside it take.

    The files go to the folder for temporary ones. The second number counts everything: the copy,
    and steps that are slower while the thread hashes and writes.
    """
    if parts.ranks.world_size > 1:
        raise ConfigError("checkpoints are timed on one rank alone; give --checkpoints 0")
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(
            Path(folder),
            identity="bench",
            token=secrets.token_hex(4),
        )
        writer.prepare(parts.state.shards(0, 1))
        saves, seconds = Saves(writer, count), list[float]()
        while saves.left or writer.is_writing:
            times = StepTimes(parts.ranks.device)
            parts.train(batches, STEPS_AT_A_TIME, [saves, times])
            seconds += times.seconds
        writer.wait()
    extra = sum(seconds) - len(seconds) * step_seconds
    return {
        "checkpoints": count,
        "checkpoint_stall_seconds": round(statistics.median(writer.stall_seconds), 6),
        "checkpoint_stall_seconds_max": round(max(writer.stall_seconds), 6),
        "checkpoint_cost_seconds": round(extra / count, 4),
    }


def describe(parts: Parts) -> dict[str, Any]:
    """Everything that tells this run from others."""
    model, execution, ranks = parts.plan.model, parts.setup.execution, parts.ranks
    return {
        "depth": model.n_layer,
        "width": model.n_embd,
        "sequence_len": model.sequence_len,
        "vocab_size": model.vocab_size,
        "parameters": sum(p.numel() for p in parts.state.model.parameters()),
        "dtype": str(parts.dtype).removeprefix("torch."),
        "fp8": parts.setup.recipe.fp8,
        "attention": parts.attention,
        "compile": execution.compile_scope if execution.compile else "off",
        "activation_checkpointing": execution.activation_checkpointing,
        "tokens_per_step": parts.plan.tokens_per_step,
        "device_batch_size": parts.device_batch_size,
        "accumulation": parts.passes,
        "device": device_name(ranks.device),
        "ranks": ranks.world_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def device_name(device: torch.device) -> str:
    """The GPU as its driver calls it, else what kind of processor it is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}"
