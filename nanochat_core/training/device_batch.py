"""How many rows of a step one device takes at a time, and what happens when its memory runs out.

Shapes: B rows, T positions.
"""

import gc
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from nanochat_core.config.base import Auto
from nanochat_core.errors import ConfigError
from nanochat_core.model.counts import gradient_copies
from nanochat_core.training.dial import FULL_SHARE
from nanochat_core.training.step import LossFunction, MicroBatch

log = logging.getLogger(__name__)

GIGABYTE = 10**9
PROBE_PASSES = 2
"""The second one meets what the first has left behind: workspaces, tuned kernels."""

MEMORY_ERRORS = (RuntimeError, MemoryError)
"""Kinds of errors among which `is_out_of_memory` tells."""
_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
WHAT_TO_DO = (
    "set activation_checkpointing=true, use a smaller pretrain.sequence_len or pretrain.depth, "
    "or raise memory_limit_gb if it was given"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU or this process has no memory left for a tensor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def fewer_rows(rows: int) -> int:
    """The next smaller micro-batch that divides whatever this one divides: half, if it is even."""
    return next(part for part in range(rows // 2, 0, -1) if rows % part == 0)


@dataclass(frozen=True)
class Attempt:
    """A micro-batch that was tried; without a peak it did not fit."""

    rows: int
    peak_bytes: int | None

    def __str__(self) -> str:
        """As a line of the log says it."""
        if self.peak_bytes is None:
            return f"{self.rows} ran out of memory"
        return f"{self.rows} took {self.peak_bytes / GIGABYTE:.2f} GB"


@dataclass(frozen=True)
class Choice:
    """The rows of a micro-batch, and what was tried to find them."""

    rows: int
    attempts: tuple[Attempt, ...]


def search_rows(
    attempt: Callable[[int], int],
    *,
    guess: int,
    most: int,
    static_bytes: int,
    limit_bytes: int,
) -> Choice:
    """The largest power of two up to `most` that fits, found by trying from `guess` on.

    `attempt(rows)` gives the peak in bytes, or raises when memory runs out. What takes more than
    92 % of the limit does not fit, if there is a smaller number. Twice the rows are tried where
    twice the bytes above `static_bytes` should fit. Raises ConfigError when one row does not.
    """
    room = FULL_SHARE * limit_bytes
    tried: dict[int, int | None] = {}
    rows, best = min(guess, most), 0
    while rows not in tried:
        peak = tried[rows] = _peak(attempt, rows)
        if peak is not None and (peak <= room or rows == 1):
            best = rows
            is_room_for_two = static_bytes + 2 * (peak - static_bytes) <= room
            rows = 2 * rows if is_room_for_two and 2 * rows <= most else rows
        elif rows == 1:
            raise ConfigError(
                f"a micro-batch of one row does not fit the {limit_bytes / GIGABYTE:.2f} GB that "
                f"are there ({static_bytes / GIGABYTE:.2f} GB are weights and moments); "
                f"{WHAT_TO_DO}"
            )
        else:
            rows //= 2
    return Choice(best, tuple(Attempt(*each) for each in tried.items()))


def _peak(attempt: Callable[[int], int], rows: int) -> int | None:
    try:
        return attempt(rows)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
    return None


class DeviceMemory(Protocol):
    """What can be known of the memory that a rank has."""

    def start(self) -> int:
        """Give back what nobody uses, forget earlier peaks; bytes that stay in use."""

    def peak(self) -> int:
        """The most bytes in use at once since the start."""

    def limit(self) -> int:
        """Bytes that this process may use in all."""


@dataclass(frozen=True)
class CudaMemory:
    """The memory of one GPU, as PyTorch's allocator counts it."""

    device: torch.device
    limit_gb: float | Auto = "auto"

    def start(self) -> int:
        """Empty the cache of the allocator; bytes of live tensors."""
        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        """Once every kernel has run."""
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)

    def limit(self) -> int:
        """What is free and what this process has: drivers and other processes take theirs."""
        free_bytes, _ = torch.cuda.mem_get_info(self.device)
        room = free_bytes + torch.cuda.memory_reserved(self.device)
        return room if self.limit_gb == "auto" else min(room, int(self.limit_gb * GIGABYTE))


@dataclass(frozen=True)
class Probe:
    """Real micro-batches, forward and backward, that leave nothing behind but a peak.

    No weight, moment or step changes, and no gradient stays. `micro_batch(rows)` makes one of so
    many rows, of which a rank has `rows_per_rank` in a step.
    """

    model: torch.nn.Module
    loss_function: LossFunction
    micro_batch: Callable[[int], MicroBatch]
    rows_per_rank: int
    memory: DeviceMemory

    def __call__(self, rows: int) -> int:
        """The peak in bytes of a micro-batch beside the gradients of those before it."""
        self.memory.start()
        try:
            partial_sums = self._partial_sums(self.rows_per_rank // rows)
            for _ in range(PROBE_PASSES):
                self._drop_gradients()
                self._pass(rows)
            peak = self.memory.peak()
            del partial_sums
            return peak
        finally:
            self._drop_gradients()

    def _pass(self, rows: int) -> None:
        batch = self.micro_batch(rows)
        tensors = (batch.inputs_BT, batch.targets_BT, batch.token_weights_BT)
        loss = self.loss_function(*tensors) * batch.loss_weight
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it

    def _partial_sums(self, passes: int) -> list[torch.Tensor]:
        """As much as the sum of a step's gradients holds while its last micro-batch is computed."""
        copies = gradient_copies(passes) - 1
        parameters = list(self.model.parameters())
        return [torch.zeros_like(each) for _ in range(copies) for each in parameters]

    def _drop_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)


def limit_memory(limit_gb: float, device: torch.device) -> None:
    """Hold this process to so many gigabytes (10^9 bytes) of the device's memory.

    On a CPU these are all its private data, as Linux counts it (RLIMIT_DATA). Raises ConfigError
    where that much is taken already.
    """
    limit_bytes = int(limit_gb * GIGABYTE)
    if device.type == "cuda":
        total_bytes = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total_bytes), device)
    elif device.type == "cpu" and sys.platform == "linux":
        import resource  # exists on Unix only

        taken = private_data_bytes()
        if taken >= limit_bytes:
            raise ConfigError(
                f"memory_limit_gb={limit_gb:g}, but this process takes {taken / GIGABYTE:.2f} GB "
                f"before it trains; use {1.5 * taken / GIGABYTE:.1f} or more"
            )
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    else:
        log.warning(
            "memory_limit_gb=%g is not held on %s (%s)", limit_gb, device.type, sys.platform
        )


def private_data_bytes(status: Path = Path("/proc/self/status")) -> int:
    """What Linux counts against the limit of this process's data."""
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmData:"))
    return 1024 * int(kilobytes)
