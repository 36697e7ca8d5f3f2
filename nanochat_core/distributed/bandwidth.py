"""How fast this machine's ranks exchange gradients, measured before training, and what that costs.

An all-reduce of S bytes over W ranks moves 2 S (W-1)/W bytes in and out of each rank, whatever its
algorithm; that number per second is the "bus bandwidth", which does not depend on W where links do
not (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md). Summing gradients into shards and gathering
the new weights are one half of an all-reduce each: N bytes of both together move N (W-1)/W.
"""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat_core.distributed.collectives import all_reduce
from nanochat_core.distributed.ranks import Ranks

MIB = 1 << 20
MESSAGE_BYTES = {"cuda": 64 * MIB, "cpu": 4 * MIB}
"""Large enough that latency does not count, small enough to be over in a moment."""
WARM_UPS, REPEATS = 2, 5


@dataclass(frozen=True)
class Bandwidth:
    """What was measured, and what it means for one step; zeros in a world of one."""

    world_size: int
    gigabytes_per_second: float
    """Bus bandwidth, in 10^9 bytes."""
    seconds_per_step: float
    """Gradients out, weights back; what of it hides behind computing is not known here."""


def check_bandwidth(ranks: Ranks, bytes_per_step: int) -> Bandwidth:
    """Time a few all-reduces; the same numbers on every rank, of the slowest one.

    `bytes_per_step` is the size of all gradients and all weights that a rank hands over and gets
    in a step (see `exchanged_bytes`).
    """
    if ranks.world_size == 1:
        return Bandwidth(1, 0.0, 0.0)
    size = MESSAGE_BYTES[ranks.device.type]
    buffer = torch.zeros(size // 4, dtype=torch.float32, device=ranks.device)
    seconds = statistics.median(all_reduce_seconds(buffer, ranks))
    share = (ranks.world_size - 1) / ranks.world_size
    bytes_per_second = 2 * size * share / seconds
    return Bandwidth(
        ranks.world_size, bytes_per_second / 1e9, bytes_per_step * share / bytes_per_second
    )


def all_reduce_seconds(buffer: Tensor, ranks: Ranks) -> list[float]:
    """How long each of a few all-reduces took on the slowest rank."""
    own = []
    for number in range(WARM_UPS + REPEATS):
        _settle(ranks)
        started = time.perf_counter()
        all_reduce(buffer, ranks).wait()
        _settle(ranks)
        if number >= WARM_UPS:
            own.append(time.perf_counter() - started)
    slowest = torch.tensor(own, dtype=torch.float64, device=ranks.device)
    times: list[float] = all_reduce(slowest, ranks, operation="max").wait().tolist()
    return times


def exchanged_bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes of gradients and weights in one step: both have the dtype of the parameters."""
    return 2 * sum(p.numel() * p.element_size() for p in parameters)


def describe(bandwidth: Bandwidth, compute_seconds: float) -> str:
    """The prediction in one line; `compute_seconds` is what a step takes without it."""
    seconds = bandwidth.seconds_per_step
    return (
        f"{bandwidth.world_size} ranks exchange {bandwidth.gigabytes_per_second:.3g} GB/s (bus "
        f"bandwidth of all-reduce): communication adds about {1e3 * seconds:.3g} ms to each step, "
        f"which takes {1e3 * compute_seconds:.3g} ms without it "
        f"({seconds / compute_seconds:.0%} slower, less what overlaps)"
    )


def _settle(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
