"""FlashAttention 4: `flash_attn.cute` of the package flash-attn-4, compiled on first use.

Called directly, since the hook of PyTorch 2.11 refuses windows and unpacks another number of
results than newer packages give.

Shapes: B batch, T positions, H query heads, G key heads, D head dim.
"""

import functools
import importlib
from typing import Any

import torch

from nanochat_core.model.attention import Backend
from nanochat_core.model.backends.flash_ops import FlashKernels, flash_backend
from nanochat_core.model.backends.hardware import UnavailableError, check_capability, hardware_of

MAJORS = (9, 10)
"""Hopper and Blackwell, which it is written for; of the others some have no backward in it."""
MODULE = "flash_attn.cute.interface"
NOT_INSTALLED = (
    "the package flash-attn-4 is not installed: pip install --pre flash-attn-4, on CUDA 13 "
    '"flash-attn-4[cu13]"'
)


@functools.cache
def open_fa4(device: torch.device) -> Backend:
    """Attention by FlashAttention 4; UnavailableError where that cannot be."""
    check_capability(hardware_of(device), MAJORS)
    return _backend()


@functools.cache
def _backend() -> Backend:
    """One pair of operators for the process, however many devices it opens."""
    return flash_backend("fa4", fa4_kernels(find_interface()))


def find_interface() -> Any:
    """The module with `_flash_attn_fwd` and `_flash_attn_bwd`."""
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        if error.name is None or not MODULE.startswith(error.name):
            raise  # it is there, and misses a package of its own
        raise UnavailableError(NOT_INSTALLED) from error


def fa4_kernels(interface: Any) -> FlashKernels:
    """The package's two functions, told that attention is causal and how far it looks back."""

    def forward(
        q_BTHD: torch.Tensor, k_BTGD: torch.Tensor, v_BTGD: torch.Tensor, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # How many results follow differs between releases.
        out_BTHD, lse_BHT, *_ = interface._flash_attn_fwd(
            q_BTHD, k_BTGD, v_BTGD, return_lse=True, **_options(window, q_BTHD)
        )
        return out_BTHD, lse_BHT

    def backward(
        tensors: tuple[torch.Tensor, ...], window: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        grad_BTHD, q_BTHD, k_BTGD, v_BTGD, out_BTHD, lse_BHT = tensors
        dq_BTHD, dk_BTGD, dv_BTGD, *_ = interface._flash_attn_bwd(
            *(q_BTHD, k_BTGD, v_BTGD, out_BTHD, grad_BTHD, lse_BHT),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            **_options(window, q_BTHD),
        )
        return dq_BTHD, dk_BTGD, dv_BTGD

    return FlashKernels(forward, backward)


def _options(window: int, q_BTHD: torch.Tensor) -> dict[str, Any]:
    """No limit to the left picks the faster causal kernel; causal itself limits the right."""
    return {
        "softmax_scale": float(q_BTHD.size(-1) ** -0.5),
        "causal": True,
        "window_size_left": None if window >= q_BTHD.size(1) - 1 else window,
    }
