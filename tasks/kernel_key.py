"""What compiled code depends on: torch, the device, the compiler and our own sources.

Read without torch, as everything in `tasks`. What has another key is never taken for ours: code
for another processor would end the process that runs it.
"""

import hashlib
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nanochat_core
from nanochat_core.artifacts.canonical import canonical_json, sha256_hex
from nanochat_core.config.base import Config
from nanochat_core.config.execution import Device

COMPILED_PACKAGES = ("model", "optim", "training")
"""The packages of `nanochat_core` whose functions are compiled."""
ASK_GPUS = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
ASK_SECONDS = 30.0
KEY_LETTERS = 16


class KernelKey(Config):
    """Where compiled code can be used again; the recipe of the artifact that holds it.

    A CPU's kernels are found again only where torch lies at the same path, too: inductor names them
    by a hash of the compiler's whole command line. Elsewhere they are compiled, and added.
    """

    torch: str
    triton: str
    python: str
    device: str
    compiler: str
    c_library: str
    code: str

    @property
    def short(self) -> str:
        """The name of its folder on this machine."""
        return sha256_hex(canonical_json(self.model_dump()))[:KEY_LETTERS]


@cache
def kernel_key(device: Device) -> KernelKey:
    """The key of what is compiled for `device` in this installation, on this machine."""
    found = gpus() if device in ("auto", "cuda") and not _version("torch").endswith("+cpu") else ""
    return KernelKey(
        torch=_version("torch"),
        triton=_version("triton"),
        python=str(sysconfig.get_config_var("SOABI") or platform.python_version()),
        device=found or processor(),
        # A GPU's code is not made by the C++ compiler.
        compiler="" if found else compiler(),
        c_library=" ".join(platform.libc_ver()).strip(),
        code=code_hash(Path(nanochat_core.__file__).parent),
    )


def gpus(command: Sequence[str] = ASK_GPUS) -> str:
    """Every kind of NVIDIA GPU of this machine with capability and driver; empty without one."""
    return "; ".join(sorted(set(_said(command))))


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The architecture of the CPU and a hash of what it can do, or its name where that is hidden.

    Our compiler makes code for the very processor that it runs on.
    """
    abilities = platform.processor()
    if cpuinfo.exists():
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        lines = (line.partition(":") for line in text.splitlines())
        # x86 calls them flags, ARM Features; both list them once for each core.
        named = [value for name, _, value in lines if name.strip() in ("flags", "Features")]
        abilities = " ".join(sorted(set(named[0].split()))) if named else abilities
    return f"{platform.machine()} {sha256_hex(abilities.encode())[:KEY_LETTERS]}"


def compiler() -> str:
    """What the C++ compiler says of itself; empty where there is none."""
    name = "clang++" if platform.system() == "Darwin" else "g++"
    said = _said((name, "--version")) if shutil.which(name) else []
    return said[0] if said else ""


def code_hash(package: Path, parts: Sequence[str] = COMPILED_PACKAGES) -> str:
    """A hash of the sources that are compiled, by their names and contents."""
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted((package / part).rglob("*.py")):
            digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:KEY_LETTERS]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _said(command: Sequence[str]) -> list[str]:
    """The lines that a program prints; none where it is missing or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
