"""When each step ended, without a wait that the training loop would not have.

A GPU works behind the host: the host only enqueues kernels, and a clock read beside it would time
the queue, while waiting for the device after each step would empty the queue and slow the steps
down. So on CUDA every step leaves an event in the stream, which the device stamps as it passes;
the stamps are read at the end.
"""

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import psutil
import torch

from nanochat_core.training.loop import StepMetrics
from nanochat_core.training.reading import Reading
from nanochat_core.training.state import TrainState

PERCENTILES = (5, 50, 95)
START_TIME_FIELD = 19
"""Of /proc/PID/stat behind the command's name: the start in clock ticks since the boot."""


class Clock(Protocol):
    """Marks moments; the seconds between them are asked for once all have passed."""

    def mark(self) -> None:
        """Now."""

    def seconds(self) -> list[float]:
        """From each mark to the next."""


class HostClock:
    """For devices whose work is done when a step returns."""

    def __init__(self) -> None:
        self._moments: list[float] = []

    def mark(self) -> None:
        """Now."""
        self._moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each mark to the next."""
        return [b - a for a, b in zip(self._moments, self._moments[1:], strict=False)]


class CudaClock:
    """For GPUs: marks are events among the kernels of the current stream."""

    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """When the device has done everything that it was told so far."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # of torch
        event.record()
        self._events.append(event)

    def seconds(self) -> list[float]:
        """From each mark to the next; waits for the last one."""
        if self._events:
            self._events[-1].synchronize()
        pairs = zip(self._events, self._events[1:], strict=False)
        return [first.elapsed_time(second) / 1e3 for first, second in pairs]


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock() if device.type == "cuda" else HostClock()


class StepTimes:
    """A hook of the training loop that times its steps and keeps their losses."""

    def __init__(self, device: torch.device) -> None:
        self._clock = clock_of(device)
        self._readings: list[Reading] = []

    def at_start(self, state: TrainState) -> None:  # noqa: ARG002  a hook gets it
        """The first step begins."""
        self._clock.mark()

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:  # noqa: ARG002  too
        """A step was handed to the device."""
        self._clock.mark()
        self._readings.append(metrics.reading)

    def at_end(self, state: TrainState) -> None:
        """Nothing is left to time."""

    @property
    def seconds(self) -> list[float]:
        """Of each step."""
        return self._clock.seconds()

    @property
    def losses(self) -> list[float]:
        """Of each step, in nats per token; not finite where a float16 step overflowed."""
        return [reading.wait().loss_nats for reading in self._readings]


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def process_seconds(stat: Path = Path("/proc/self/stat")) -> float:
    """Seconds since this process was started, before Python was.

    To 10 ms on Linux; elsewhere psutil knows it to a second.
    """
    if not stat.exists():
        return time.time() - psutil.Process().create_time()
    fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
    started = int(fields[START_TIME_FIELD]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
