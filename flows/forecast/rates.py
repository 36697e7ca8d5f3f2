"""How fast work goes by reference: figures measured once, stated here, and corrected by records."""

from dataclasses import dataclass, replace

from flows.forecast.machine import Machine
from nanochat_core.config.execution import Execution
from nanochat_core.model.counts import Numbers
from nanochat_core.training.hardware_peaks import PEAK_BF16_FLOPS

REFERENCE_MATMUL_FLOPS = 100e9
"""Of `machine.matmul_flops` on the CPU on which the figures below were measured: one core of an
AMD EPYC with AVX512_BF16 (LOG.md, the box)."""
GPU_SHARE = 0.4
"""Of the data sheet's FLOP/s that training reaches: the reference's runs say 0.4 to 0.5."""
UNKNOWN_GPU_FLOPS = 100e12
SHARE_OF_MORE_CORES = 0.8
"""What every further core of a CPU adds, in cores."""
RANK_SHARE = 0.9
"""What every further GPU adds, in GPUs: sums over ranks take their part."""


@dataclass(frozen=True)
class Rates:
    """Seconds of the parts of a job, on a machine and with an execution."""

    flops: float
    """FLOP/s of matrix products in training, all ranks together."""
    bytes: float
    """Bytes/s of what is no matrix product: activations, logits, moments."""
    layer_seconds: float
    """What the host needs for forward and backward of one block, however small."""
    token_seconds: float
    """What the host needs for one token of each row in a batch of replies, one block."""
    start_seconds: float
    """Start of a job: launcher, imports, device."""
    compile_seconds: float
    """The first step with nothing compiled before."""
    warm_seconds: float
    """The first step with everything compiled before."""


CPU = Rates(
    # 120 ms a step at d2 (width 128), 437 at d3 (256), 497 at d4, 1,665 at d6 (384): `bench train`,
    # 2,048 tokens, vocabulary 2,048, bfloat16, compiled, one thread, fastest twentieth.
    flops=165e9,
    bytes=5e9,
    layer_seconds=1e-3,
    token_seconds=1.2e-3,
    start_seconds=4.0,
    compile_seconds=55.0,
    warm_seconds=4.0,
)
GPU = Rates(
    flops=0.0,
    bytes=1.5e12,
    layer_seconds=3e-4,
    token_seconds=5e-4,
    start_seconds=15.0,
    # Goals, and not measured: LOG.md, "On an H100".
    compile_seconds=60.0,
    warm_seconds=20.0,
)
EAGER_TRAFFIC = 2.5
"""Times the bytes that a compiler saves; 160 ms instead of 120 at width 128."""
EAGER_CALLS = 3.0
FLOAT32_SHARE = 0.5
"""Of the FLOP/s in bfloat16, on a CPU that has it and on a GPU with TF32."""


def rates(machine: Machine, execution: Execution, numbers: Numbers) -> Rates:
    """Reference figures of a kind of machine: of a CPU core as good as that of reference."""
    base = GPU if machine.device_type == "cuda" else CPU
    share = FLOAT32_SHARE if numbers == "float32" else 1.0
    base = replace(base, flops=share * _flops(machine, execution))
    if execution.compile:
        return base
    return replace(
        base,
        bytes=base.bytes / EAGER_TRAFFIC,
        layer_seconds=base.layer_seconds * EAGER_CALLS,
    )


def _flops(machine: Machine, execution: Execution) -> float:
    ranks = execution.ranks * execution.nodes
    if machine.device_type == "cuda":
        peak = PEAK_BF16_FLOPS.get(machine.gpu, UNKNOWN_GPU_FLOPS)
        return GPU_SHARE * peak * _grown(ranks, RANK_SHARE)
    cores = min(ranks * execution.threads, machine.cpus * execution.nodes)
    return CPU.flops * _grown(cores, SHARE_OF_MORE_CORES)


def _grown(count: int, share: float) -> float:
    return 1.0 + share * (max(count, 1) - 1)
