"""Block-sliced SDPA, which runs on every device: `model.attention.attend`, as a backend.

Shapes: B batch, T positions, H query heads, G key heads, D head dim, Q queries of one block.
"""

import functools

import torch

from nanochat_core.model.attention import Backend, attend, band_mask


def open_sdpa(_: torch.device) -> Backend:
    """Nothing to look for: PyTorch has it on every device."""
    return attend_sdpa


def attend_sdpa(
    q_BTHD: torch.Tensor, k_BTGD: torch.Tensor, v_BTGD: torch.Tensor, *, window: int
) -> torch.Tensor:
    """As in `Backend`; what SDPA picks among its kernels is up to PyTorch."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGD))
    band = None if window >= q.size(2) - 1 else _band(window, q.device)
    return attend(q, k, v, window=window, band=band).transpose(1, 2)


def _band(window: int, device: torch.device) -> torch.Tensor | None:
    """The band of a window, or None while a graph is traced: it is then made, fused, inside of it.

    A table that is filled while a graph is traced would hold tensors of the tracer.
    """
    return None if torch.compiler.is_compiling() else _kept_band(window, device)


@functools.cache
def _kept_band(window: int, device: torch.device) -> torch.Tensor:
    """One band for the whole process, (Q, window + Q): no state of the model, in no state dict."""
    # Made in an evaluation, it must serve training as well, which keeps it for backward.
    with torch.inference_mode(mode=False):
        return band_mask(window, device)
