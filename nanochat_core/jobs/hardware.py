"""What a job says about the machine it ran on."""

import platform
from typing import Any

import torch

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.training.hardware_peaks import data_sheet_flops


def peak_flops(ranks: Ranks) -> float | None:
    """Peak of all ranks together, or None where it is not known (then MFU is not logged)."""
    if ranks.device.type != "cuda":
        return None
    peak = data_sheet_flops(torch.cuda.get_device_name(ranks.device))
    return None if peak is None else peak * ranks.world_size


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
