"""What the machine is: processors, memory, GPUs; and what works on it beside arithmetic."""

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch._inductor.utils import fresh_cache

from nanochat_core.bench.number_formats import cpu_flags
from nanochat_core.errors import WeakSandboxError
from nanochat_core.jobs.doctor_page import Problem, Section, cause, size
from nanochat_core.sandbox.execution import Sandbox
from nanochat_core.sandbox.tiers import is_mighty

SHOWN_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "sve")
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_DRIVER_VERSION = re.compile(r"Kernel Module.*?(\d+\.\d+(\.\d+)?)")
SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_BYTES = 10**9
"""NCCL wants some 10 MB a GPU pair; containers have 64 MB in all unless told otherwise."""
COMPILE_ERROR = 1e-4
WITHOUT_COMPILER = "or train without it: --set pretrain.compile=false, as for sft and rl"
TRIAL_SECONDS = 20


def machine_section(device: torch.device, *, wants_cuda: bool) -> Section:
    """System, processor, memory and GPUs."""
    memory = psutil.virtual_memory()
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = [flag for flag in SHOWN_FLAGS if flag in cpu_flags()]
    threads = torch.get_num_threads()
    gpus = gpu_facts()
    rows = [
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("python", f"{platform.python_version()}, torch {torch.__version__}"),
        ("processor", f"{processor_name()}: {num_cores} cores, {threads} used by a rank"),
        ("can do", ", ".join(flags) or "no vector instructions that we know of"),
        ("memory", f"{size(memory.total)}, {size(memory.available)} free"),
        *((f"GPU {i}", text) for i, text in enumerate(gpus)),
    ]
    if not gpus:
        rows.append(("GPU", "Metal" if device.type == "mps" else "none that torch can use"))
    if driver := nvidia_driver():
        rows.append(("driver", driver))
    return Section(
        "machine",
        rows,
        problems=[
            *blind_torch(len(gpus), wants_cuda=wants_cuda),
            *small_shared_memory(len(gpus)),
        ],
        data={
            **dict(rows),
            "cores": num_cores,
            "threads": threads,
            "memory_bytes": memory.total,
            "free_memory_bytes": memory.available,
            "cuda": torch.version.cuda,
        },
    )


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name by which the CPU is sold, or else its kind."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def gpu_facts() -> list[str]:
    """One line for each CUDA device of torch."""
    facts = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        major, minor = torch.cuda.get_device_capability(i)
        name = torch.cuda.get_device_name(i)
        facts.append(f"{name}, capability {major}.{minor}, {size(total)}, {size(free)} free")
    return facts


def nvidia_driver(file: Path = NVIDIA_DRIVER) -> str:
    """The version of NVIDIA's kernel driver; empty without one."""
    if not file.is_file():
        return ""
    found = _DRIVER_VERSION.search(file.read_text(errors="replace"))
    return f"NVIDIA {found[1]}" if found else "NVIDIA"


def blind_torch(num_seen: int, *, wants_cuda: bool, folder: Path = NVIDIA_GPUS) -> list[Problem]:
    """GPUs that the driver knows and torch does not see."""
    num_there = len(list(folder.iterdir())) if folder.is_dir() else 0
    if num_there == 0 or num_seen > 0:
        return []
    found = f"the driver knows {num_there} GPU(s), torch {torch.__version__} sees none"
    if torch.version.cuda is None:
        remedy = "Install a build of torch for CUDA: this one is for the CPU"
    else:
        remedy = (
            "Look at CUDA_VISIBLE_DEVICES; or the driver is too old for the CUDA "
            f"{torch.version.cuda} of this torch: update it"
        )
    return [Problem(found, remedy, stops=wants_cuda)]


def small_shared_memory(
    num_gpus: int, folder: Path = SHARED_MEMORY, *, min_bytes: int = MIN_SHARED_BYTES
) -> list[Problem]:
    """Shared memory too small for several GPUs to talk through."""
    if num_gpus < 2 or not folder.is_dir():
        return []
    total = shutil.disk_usage(folder).total
    if total >= min_bytes:
        return []
    return [
        Problem(
            f"{folder} has {size(total)} for {num_gpus} GPUs",
            "Start the container with --shm-size=2g or --ipc=host",
        )
    ]


def compiler_section(device: torch.device, *, stops: bool, cache_parent: Path) -> Section:
    """Whether torch.compile makes code that is right, with an empty cache."""
    rows = [("compiler", compiler_name(device))]
    started = time.monotonic()
    try:
        cache_parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_parent, prefix="doctor-") as folder:
            error = compiled_error(device, folder)
    except Exception as trouble:  # noqa: BLE001  a compiler fails in many ways; all are the answer
        return Section(
            "compiler",
            [*rows, ("torch.compile", "fails")],
            problems=[
                Problem(
                    f"torch.compile fails: {cause(trouble)}", compiler_remedy(device), stops=stops
                )
            ],
            data={"compiler": rows[0][1], "works": False, "reason": str(trouble)},
        )
    seconds = time.monotonic() - started
    works = error <= COMPILE_ERROR
    said = "right" if works else f"wrong by {error:.1e}"
    rows.append(("torch.compile", f"forward and backward {said}, {seconds:.0f} s with no cache"))
    wrong = Problem(
        f"compiled code is wrong by {error:.1e}",
        f"Update the compiler or the driver, {WITHOUT_COMPILER}",
        stops=stops,
    )
    data = {"compiler": rows[0][1], "works": works, "error": error, "seconds": round(seconds, 2)}
    return Section("compiler", rows, problems=[] if works else [wrong], data=data)


def compiled_error(device: torch.device, cache_folder: str) -> float:
    """Largest difference between a small function compiled now and the same one run as it is."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x.relu().square() * 0.5).sum()

    x = torch.linspace(-1, 1, 1000, device=device, requires_grad=True)
    (expected,) = torch.autograd.grad(function(x), x)
    # Which vector instructions compile is tried for 10 s by torch; the best ones are enough here.
    with (
        fresh_cache(dir=cache_folder),
        torch._inductor.config.patch({"cpp.vec_isa_ok": True}),
    ):
        y = torch.compile(function, dynamic=False)(x)
        (grad,) = torch.autograd.grad(y, x)
    torch._dynamo.reset()
    error = max(float((grad - expected).abs().max()), float((y - function(x)).abs() / y.abs()))
    return error


def compiler_name(device: torch.device) -> str:
    """What makes the code of the device."""
    if device.type == "cuda":
        try:
            import triton  # type: ignore[import-not-found,unused-ignore]  # only with CUDA
        except ImportError:
            return "no Triton"
        return f"Triton {triton.__version__}"
    name = "clang++" if platform.system() == "Darwin" else "g++"
    path = shutil.which(name)
    if path is None:
        return f"no {name}"
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0] or f"{name} does not start"


def compiler_remedy(device: torch.device) -> str:
    """What to do where torch.compile fails."""
    if device.type == "cuda":
        return f"Install triton and a C compiler (gcc), {WITHOUT_COMPILER}"
    return (
        f"Install a C++ compiler (Debian: g++; macOS: xcode-select --install), {WITHOUT_COMPILER}"
    )


def processes_section(device: torch.device, *, ranks: int) -> Section:
    """Which libraries can carry a sum between ranks, tried with one of them."""
    found = {"gloo": try_backend("gloo", torch.device("cpu")) if dist.is_available() else "absent"}
    if device.type == "cuda":
        found["nccl"] = try_backend("nccl", device)
    needed = "nccl" if device.type == "cuda" else "gloo"
    problems = [
        Problem(
            f"{name} does not work: {reason}",
            "Use ranks=1, or look at the network settings (GLOO_SOCKET_IFNAME, NCCL_DEBUG=INFO)",
            stops=ranks > 1 and name == needed,
        )
        for name, reason in found.items()
        if reason
    ]
    if device.type != "cpu":
        problems += too_many_ranks(ranks, torch.cuda.device_count() if needed == "nccl" else 1)
    rows = [(name, "fails" if why else "works: a sum of one rank") for name, why in found.items()]
    return Section("several processes", rows, problems=problems, data=found)


def too_many_ranks(ranks: int, num_devices: int) -> list[Problem]:
    """More ranks than there are devices for them."""
    if ranks <= num_devices:
        return []
    what = f"{ranks} ranks need as many GPUs, and there are {num_devices}"
    return [Problem(what, f"Use ranks={num_devices}, or device=cpu", stops=True)]


def try_backend(name: str, device: torch.device) -> str:
    """Why a backend of torch.distributed cannot sum a number on one rank; empty if it can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            dist.init_process_group(
                name,
                rank=0,
                world_size=1,
                init_method=Path(folder, "meeting").as_uri(),
                timeout=timedelta(seconds=TRIAL_SECONDS),
                device_id=device if device.type == "cuda" else None,
            )
            value = torch.ones(1, device=device)
            dist.all_reduce(value)
            return "" if value.item() == 1 else f"the sum of 1 is {value.item()}"
        except (RuntimeError, ValueError, OSError) as error:
            return cause(error)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def sandbox_section() -> Section:
    """What holds back code that a model has written."""
    try:
        tier = Sandbox.open(allow_weak=False).tier
    except WeakSandboxError as error:
        weak = Problem(f"nothing but limits holds generated code back ({cause(error)})", _STRONGER)
        return Section(
            "sandbox", [("tier", "limits only")], problems=[weak], data={"tier": "limits"}
        )
    user = "another user" if is_mighty() else "a user namespace"
    return Section("sandbox", [("tier", f"{tier}, tried here, with {user}")], data={"tier": tier})


_STRONGER = "Install bubblewrap, or leave out benchmarks that run code (HumanEval)"
