"""Which number format a job computes in: RECIPE section 1."""

from pathlib import Path

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CPU_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
MIN_CUDA_BFLOAT16 = (8, 0)


def resolve_compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32.

    Native means CUDA compute capability 8.0 or more, or a CPU with avx512_bf16 or amx_bf16.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= MIN_CUDA_BFLOAT16
    else:
        native = device.type == "cpu" and cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the kernel reports native bfloat16 arithmetic (Linux; elsewhere False)."""
    if not cpuinfo.exists():
        return False
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("flags"):
            return any(flag in line.split() for flag in CPU_BFLOAT16_FLAGS)
    return False
