"""Flash attention kernels of other libraries as operators that PyTorch can trace.

A raw kernel may return tensors that alias its inputs and knows nothing of shapes before it runs;
an operator must return fresh tensors and say their shapes, so that a compiled region can hold it.

Shapes: B batch, T positions, H query heads, G key heads, D head dim.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from nanochat_core.model.attention import Backend
from nanochat_core.model.backends.hardware import check_flash_dtype

Forward = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]
]
Backward = Callable[
    [tuple[torch.Tensor, ...], int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]
]


class FlashKernels(NamedTuple):
    """A pair of kernels: causal attention in windows, and its gradients.

    `forward(q_BTHD, k_BTGD, v_BTGD, window)` gives the output (B, T, H, D) and the log of each
    softmax's sum (B, H, T) in float32. `backward((grad_BTHD, q, k, v, out, lse), window)` gives the
    gradients of q, k and v. Everything is contiguous.
    """

    forward: Forward
    backward: Backward


def flash_backend(name: str, kernels: FlashKernels) -> Backend:
    """Make two operators `nanochat::<name>…` of a pair of kernels, and attention of those."""
    forward_op = _forward_op(name, kernels)
    backward_op = _backward_op(name, kernels)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        q, k, v, ctx.window = inputs
        ctx.save_for_backward(q, k, v, *output)

    def differentiate(ctx: Any, grad_BTHD: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        grads = backward_op(grad_BTHD.contiguous(), *ctx.saved_tensors, ctx.window)
        return *grads, None

    forward_op.register_autograd(differentiate, setup_context=keep)

    def attend_flash(
        q_BTHD: torch.Tensor, k_BTGD: torch.Tensor, v_BTGD: torch.Tensor, *, window: int
    ) -> torch.Tensor:
        check_flash_dtype(q_BTHD.dtype)
        q, k, v = (x.contiguous() for x in (q_BTHD, k_BTGD, v_BTGD))
        out_BTHD: torch.Tensor = forward_op(q, k, v, window)[0]
        return out_BTHD

    return attend_flash


def _forward_op(name: str, kernels: FlashKernels) -> Any:
    @torch.library.custom_op(f"nanochat::{name}_forward", mutates_args=())
    def forward(
        q_BTHD: torch.Tensor, k_BTGD: torch.Tensor, v_BTGD: torch.Tensor, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out_BTHD, lse_BHT = kernels.forward(q_BTHD, k_BTGD, v_BTGD, window)
        return out_BTHD.contiguous(), lse_BHT.contiguous()

    @forward.register_fake
    def _(q_BTHD: torch.Tensor, *_others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        batch, length, heads, _ = q_BTHD.shape
        lse_BHT = q_BTHD.new_empty((batch, heads, length), dtype=torch.float32)
        return torch.empty_like(q_BTHD), lse_BHT

    return forward


def _backward_op(name: str, kernels: FlashKernels) -> Any:
    @torch.library.custom_op(f"nanochat::{name}_backward", mutates_args=())
    def backward(
        grad_BTHD: torch.Tensor,
        q_BTHD: torch.Tensor,
        k_BTGD: torch.Tensor,
        v_BTGD: torch.Tensor,
        out_BTHD: torch.Tensor,
        lse_BHT: torch.Tensor,
        window: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tensors = (grad_BTHD, q_BTHD, k_BTGD, v_BTGD, out_BTHD, lse_BHT)
        dq, dk, dv = kernels.backward(tensors, window)
        return dq.contiguous(), dk.contiguous(), dv.contiguous()

    @backward.register_fake
    def _(
        _grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_others: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

    return backward
