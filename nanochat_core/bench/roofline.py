"""What this machine reaches at best: large matrix products and plain copies, measured here.

The figures are those of this moment and this process: its threads, its float32 precision, whatever
else runs on the machine. The best round counts, as a ceiling is what others cannot lower it to.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

SECONDS = 0.5
"""A measurement takes about as long, plus one product of each size that is too small."""
ROUND_SECONDS = 0.02
"""So long that starting and waiting for a GPU, some 20 microseconds, is noise."""
MIN_ROUNDS = 3
SIZES = (256, 512, 1024, 2048, 4096, 8192)
LARGEST_SIZE = {"cuda": 8192}
LARGEST_SIZE_ELSEWHERE = 2048
COPY_BYTES = {"cuda": 512 * 2**20}
"""Several times the caches of the largest GPU."""
COPY_BYTES_ELSEWHERE = 128 * 2**20


@dataclass(frozen=True)
class Speed:
    """How fast one kind of work goes at best; `per_second` is FLOP/s or bytes/s."""

    per_second: float
    size: int
    milliseconds: float


def measured_matmul_flops(
    device: torch.device, dtype: torch.dtype, *, seconds: float = SECONDS
) -> float:
    """FLOP/s that a large matrix product reaches on one device, in this process as it is set up."""
    return measure_matmul(device, dtype, seconds=seconds).per_second


def measure_matmul(
    device: torch.device, dtype: torch.dtype, *, seconds: float = SECONDS, size: int | None = None
) -> Speed:
    """Speed of a square product in `dtype`, as large as pays off here unless `size` is given.

    float32 is computed as `torch.get_float32_matmul_precision` says; float8 is multiplied with
    scales into bfloat16, as training does it. What the device cannot do raises torch's own error.
    """
    size = size or _fitting_size(device, dtype)
    milliseconds = 1e3 * _best_seconds(_product(device, dtype, size), device, seconds)
    return Speed(2 * size**3 / (milliseconds / 1e3), size, milliseconds)


def measure_copy(
    device: torch.device, *, seconds: float = SECONDS, num_bytes: int | None = None
) -> Speed:
    """Speed of a copy in the memory of the device; a byte counts twice, as read and as written."""
    num_bytes = num_bytes or COPY_BYTES.get(device.type, COPY_BYTES_ELSEWHERE)
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = _best_seconds(lambda: target.copy_(source), device, seconds)
    return Speed(2 * num_bytes / best, num_bytes, 1e3 * best)


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """`highest` (float32 itself) or `high` (TF32 where the device has it), then as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def synchronize(device: torch.device) -> None:
    """Wait for what the device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _fitting_size(device: torch.device, dtype: torch.dtype) -> int:
    """The first size whose product takes a round's time, or the largest that is tried."""
    largest = LARGEST_SIZE.get(device.type, LARGEST_SIZE_ELSEWHERE)
    for size in SIZES:
        if size >= largest:
            break
        product = _product(device, dtype, size)
        _seconds_of(product, device, 1)  # the first one also loads and chooses kernels
        if _seconds_of(product, device, 1) >= ROUND_SECONDS:
            return size
    return largest


def _product(device: torch.device, dtype: torch.dtype, size: int) -> Callable[[], object]:
    # Random numbers: zeros draw less power, with which a GPU clocks higher than in training.
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    if dtype.is_floating_point and dtype.itemsize == 1:
        return _float8_product(left.to(dtype), right.to(dtype))
    left, right = left.to(dtype), right.to(dtype)
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def _float8_product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    scale = torch.ones((), device=left.device)
    return lambda: torch._scaled_mm(
        left, right.t(), scale, scale, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _best_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of one `work` in the fastest of the rounds that fit `seconds`."""
    _seconds_of(work, device, 1)
    repeats = max(1, round(ROUND_SECONDS / max(_seconds_of(work, device, 1), 1e-9)))
    end, times = time.perf_counter() + seconds, list[float]()
    while len(times) < MIN_ROUNDS or time.perf_counter() < end:
        times.append(_seconds_of(work, device, repeats) / repeats)
    return min(times)


def _seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return time.perf_counter() - started
