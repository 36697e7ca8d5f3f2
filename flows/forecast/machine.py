"""Which machine a time is for, and which past times are of a machine like it. Torch-free."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nanochat_core.config.base import Config
from nanochat_core.config.execution import Execution
from nanochat_core.errors import ConfigError
from nanochat_core.training.hardware_peaks import PEAK_BF16_FLOPS
from tasks.kernel_key import gpus

DeviceType = Literal["cpu", "cuda", "mps"]
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")

MATMUL_SIZE = 512
MATMUL_SECONDS = 20.0
"""What the measurement below may take, the start of Python included, before it is given up."""
MEASURE_MATMUL = f"""
import os, time
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
import numpy
a = numpy.random.rand({MATMUL_SIZE}, {MATMUL_SIZE}).astype(numpy.float32)
times = []
for _ in range(20):
    start = time.perf_counter()
    a @ a
    times.append(time.perf_counter() - start)
print({2 * MATMUL_SIZE**3} / min(times))
"""


class Machine(Config):
    """What decides how fast a station runs, beside its own settings."""

    device_type: DeviceType
    gpu: str = ""
    """Its name, as torch tells it; '' on a CPU."""
    architecture: str = ""
    cpus: int = 1
    cpu: str = ""
    """Model of the processor, '' where that is not known."""

    def is_like(self, other: "Machine", *, uses_device: bool) -> bool:
        """Whether a station takes as long on both; data stations do not care for GPUs."""
        if uses_device and (self.device_type, self.gpu) != (other.device_type, other.gpu):
            return False
        if uses_device and self.device_type == "cuda":
            return True
        named = bool(self.cpu and other.cpu)
        same = (self.architecture, self.cpus) == (other.architecture, other.cpus)
        return same and (not named or self.cpu == other.cpu)

    @property
    def words(self) -> str:
        """How people call it."""
        if self.device_type == "cuda":
            return self.gpu or "a GPU"
        return f"{self.cpus} {self.cpu or self.architecture} cores".replace("  ", " ")


def machine_here(execution: Execution) -> Machine:
    """This machine, as a job with this execution will find it."""
    return Machine(
        device_type=_device_type(execution),
        gpu=_gpu_here() if _device_type(execution) == "cuda" else "",
        architecture=platform.machine(),
        cpus=os.cpu_count() or 1,
        cpu=cpu_model(),
    )


def machine_named(name: str, here: Machine) -> Machine:
    """A machine with a GPU that is named by a word of its data sheet, as H100."""
    for known in PEAK_BF16_FLOPS:
        if name.upper() in (known, f"NVIDIA {known}"):
            return here.model_copy(update={"device_type": "cuda", "gpu": known})
    raise ConfigError(
        f"no figures are known of {name!r}; expected one of {', '.join(PEAK_BF16_FLOPS)}, "
        "or leave --on out for this machine"
    )


def machine_of(provenance: Mapping[str, Any]) -> Machine | None:
    """The machine on which an artifact was made, as far as its manifest tells; None if not."""
    hardware = provenance.get("hardware")
    if not isinstance(hardware, Mapping) or not isinstance(hardware.get("cpus"), int):
        return None
    device_type = provenance.get("device_type", "cpu")
    if device_type not in ("cpu", "cuda", "mps"):
        return None
    device = str(provenance.get("device", ""))
    return Machine(
        device_type=device_type,
        gpu=short_name(device) if device_type == "cuda" else "",
        architecture=str(hardware.get("machine", "")),
        cpus=max(hardware["cpus"], 1),
        cpu=str(hardware.get("cpu", "")),
    )


def short_name(device: str) -> str:
    """The word of the data sheet in a device name, else the name itself."""
    return next((known for known in PEAK_BF16_FLOPS if known in device), device)


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """`AMD EPYC 9354`, or '' where nobody says (Linux only)."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(cpuinfo), re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def computes_bfloat16(machine: Machine, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether `auto` means bfloat16 there: as training decides, which needs torch for it."""
    if machine.device_type == "cuda":
        return True
    flags = re.search(r"^flags\s*:\s*(.+)$", _text(cpuinfo), re.MULTILINE)
    is_there = flags is not None and not set(BFLOAT16_FLAGS).isdisjoint(flags[1].split())
    return machine.device_type == "cpu" and is_there


def matmul_flops() -> float | None:
    """FLOP/s of a float32 matrix product on one core now; None where it could not be measured.

    In a process of its own: numpy learns of its threads when it is imported.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE_MATMUL],
            capture_output=True,
            text=True,
            timeout=MATMUL_SECONDS,
            check=True,
        )
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def busy_here() -> float:
    """Processes that want to run, by the cores there are; 0 where the system does not tell."""
    if not hasattr(os, "getloadavg"):
        return 0.0
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _device_type(execution: Execution) -> DeviceType:
    if execution.device != "auto":
        return execution.device
    if _gpu_here():
        return "cuda"
    is_apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return "mps" if is_apple else "cpu"


def _gpu_here() -> str:
    """The kind of GPU of this machine, '' without one; of several kinds the first."""
    found = gpus()
    return short_name(found.split(",")[0].strip()) if found else ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
