"""FlashAttention 3 (arXiv:2407.08608), from whichever package on this machine brings it.

Its interface: hopper/flash_attn_interface.py of github.com/Dao-AILab/flash-attention.

Shapes: B batch, T positions, H query heads, G key heads, D head dim.
"""

import ctypes
import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from nanochat_core.model.attention import Backend
from nanochat_core.model.backends.flash_ops import FlashKernels, flash_backend
from nanochat_core.model.backends.hardware import UnavailableError, check_capability, hardware_of

MAJORS = (9,)
"""Its kernels are built of instructions that only Hopper has."""
MODULES = ("flash_attn_3._C", "flash_attn_interface")
"""Importing one of these registers `torch.ops.flash_attn_3`."""
LIBRARY_PATTERN = "flash_attn_3/_C*.so"
"""Where xformers 0.0.34 carries the same operators, whichever torch it was built for."""
CUDA_RUNTIME = "libcudart.so.12"
HUB_KERNEL, HUB_VERSION = "kernels-community/flash-attn3", 1
NOT_INSTALLED = (
    "FlashAttention 3 is not installed: pip install kernels (then it is fetched from the Hugging "
    "Face hub), or xformers==0.0.34 with nvidia-cuda-runtime-cu12, or flash-attn-3 from PyTorch's "
    "own package index"
)


@functools.cache
def open_fa3(device: torch.device) -> Backend:
    """Attention by FlashAttention 3; UnavailableError where that cannot be."""
    check_capability(hardware_of(device), MAJORS)
    return _backend()


@functools.cache
def _backend() -> Backend:
    """One pair of operators for the process, however many devices it opens."""
    return flash_backend("fa3", fa3_kernels(find_operators()))


def fa3_kernels(operators: Any) -> FlashKernels:
    """The library's `fwd` and `bwd`, told that attention is causal and how far it looks back."""

    def forward(
        q_BTHD: torch.Tensor, k_BTGD: torch.Tensor, v_BTGD: torch.Tensor, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # By position: the names of the arguments differ between builds. The 20 are new keys, an
        # output to write to, lengths, pages, rotary tables and scales of fp8.
        scale, (left, right) = _scale(q_BTHD), _window(window, q_BTHD)
        chunk, softcap, interleaved, schedule, splits = 0, 0.0, True, None, 1
        out_BTHD, lse_BHT, *_ = operators.fwd(
            *(q_BTHD, k_BTGD, v_BTGD, *[None] * 20),
            *(scale, True, left, right, chunk, softcap, interleaved, schedule, splits, None, 0),
        )
        return out_BTHD, lse_BHT

    def backward(
        tensors: tuple[torch.Tensor, ...], window: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        _, q_BTHD, k_BTGD, v_BTGD, *_ = tensors
        grads = torch.empty_like(q_BTHD), torch.empty_like(k_BTGD), torch.empty_like(v_BTGD)
        scale, (left, right) = _scale(q_BTHD), _window(window, q_BTHD)
        is_exact = torch.are_deterministic_algorithms_enabled()
        # What it returns are these same tensors again, or, in other builds, only a scratch one.
        operators.bwd(*tensors, *grads, *[None] * 6, *(scale, True, left, right, 0.0, is_exact, 0))
        return grads

    return FlashKernels(forward, backward)


def _scale(q_BTHD: torch.Tensor) -> float:
    return float(q_BTHD.size(-1) ** -0.5)


def _window(window: int, q_BTHD: torch.Tensor) -> tuple[int, int]:
    """(keys before, keys after); -1 is no limit, which picks the faster causal kernel."""
    return (-1 if window >= q_BTHD.size(1) - 1 else window), 0


def find_operators() -> Any:
    """A namespace with `fwd` and `bwd`: registered, importable, in a file, or from the hub."""
    if _is_registered():
        return torch.ops.flash_attn_3
    for name in MODULES:
        if _can_import(name):
            importlib.import_module(name)
            if _is_registered():
                return torch.ops.flash_attn_3
    library = find_library()
    if library is not None:
        load_library(library)
        return torch.ops.flash_attn_3
    if _can_import("kernels"):
        hub: Any = importlib.import_module("kernels")
        return hub.get_kernel(HUB_KERNEL, version=HUB_VERSION).ops
    raise UnavailableError(NOT_INSTALLED)


def _is_registered() -> bool:
    operators = torch.ops.flash_attn_3
    return hasattr(operators, "fwd") and hasattr(operators, "bwd")


def _can_import(name: str) -> bool:
    """Whether a module is there, without importing more than the packages that it is in."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def find_library() -> Path | None:
    """The shared library inside an installed xformers, which itself is not imported.

    Its wheel wants one exact torch; the library in it uses only what is stable between them.
    """
    spec = importlib.util.find_spec("xformers")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    found = [path for folder in (package, package.parent) for path in folder.glob(LIBRARY_PATTERN)]
    return found[0] if found else None


def load_library(path: Path) -> None:
    """Register the operators of a shared library, beside the CUDA 12 runtime that it links to."""
    operators: Any = torch.ops
    try:
        operators.load_library(str(path))
    except OSError as error:
        # Newer torch says only which library it could not load, and the loader's words beneath.
        if CUDA_RUNTIME not in f"{error} {error.__cause__}":
            raise
        _load_cuda_runtime()
        operators.load_library(str(path))


def _load_cuda_runtime() -> None:
    """The runtime of CUDA 12 beside that of 13; each has symbols of its own version."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    paths = [path for folder in folders for path in Path(folder).glob(f"*/lib/{CUDA_RUNTIME}")]
    if not paths:
        raise UnavailableError(
            f"the FlashAttention 3 of xformers needs {CUDA_RUNTIME}: "
            "pip install nvidia-cuda-runtime-cu12"
        )
    ctypes.CDLL(str(paths[0]), ctypes.RTLD_GLOBAL)
