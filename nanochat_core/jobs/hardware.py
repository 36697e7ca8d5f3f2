"""What a job says about the machine it ran on."""

import platform
from typing import Any

import torch

from nanochat_core.distributed.ranks import Ranks

PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 FLOP/s from the makers' data sheets, by a word of the device name."""


def peak_flops(ranks: Ranks) -> float | None:
    """Peak of all ranks together, or None where it is not known (then MFU is not logged)."""
    if ranks.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(ranks.device)
    peaks = [peak for word, peak in PEAK_BF16_FLOPS.items() if word in name]
    return peaks[0] * ranks.world_size if peaks else None


def describe_hardware(ranks: Ranks, compute_dtype: torch.dtype) -> dict[str, Any]:
    """Provenance of a job: what may change bits, but not what was asked for."""
    on_cuda = ranks.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(ranks.device) if on_cuda else platform.processor(),
        "device_type": ranks.device.type,
        "ranks": ranks.world_size,
        "compute_dtype": str(compute_dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
