"""Soft-capped logits and their cross entropy.

Shapes: B batch, T positions, C channels, V vocabulary, P padded vocabulary, N = B * T.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F

Reduction = Literal["sum", "mean", "none"]

LOGIT_CAP = 15.0
"""Logits are squeezed smoothly into (-cap, cap), which keeps the loss calm (Gemma 2)."""
IGNORE_TARGET = -1


def soft_cap(raw: torch.Tensor) -> torch.Tensor:
    """`cap * tanh(raw / cap)` in float32.

    Written with a sigmoid, of which one exponential is vectorised everywhere; tanh made the head
    of a small model twice as slow on a CPU.
    """
    return (2.0 * LOGIT_CAP) * torch.sigmoid(raw.float() * (2.0 / LOGIT_CAP)) - LOGIT_CAP


def head_logits(x: torch.Tensor, head_weight_PC: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Logits (..., V) of `x` (..., C) before the cap, in its dtype, without padding columns."""
    return F.linear(x, head_weight_PC.to(x.dtype))[..., :vocab_size]


def token_losses(
    raw_BTV: torch.Tensor, targets_BT: torch.Tensor, reduction: Reduction
) -> torch.Tensor:
    """Cross entropy of soft-capped logits in nats, float32: a scalar, or (B, T) with "none".

    Targets of -1 count 0; "mean" is over the others, and NaN where there are none.
    """
    losses_N: torch.Tensor = CappedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        raw_BTV.flatten(0, 1), targets_BT.flatten()
    )
    if reduction == "none":
        return losses_N.view_as(targets_BT)
    if reduction == "sum":
        return losses_N.sum()
    return losses_N.sum() / (targets_BT != IGNORE_TARGET).sum()


class CappedCrossEntropy(torch.autograd.Function):
    """Losses (N,) of raw logits (N, V): one pass forward, one backward, only `raw` kept.

    Capped logits cannot overflow float32's exponential, so no pass looks for a maximum.
    """

    @staticmethod
    def forward(ctx: Any, raw_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """`log(sum(exp(y))) - y[target]` with y the capped logits."""
        logits_NV = soft_cap(raw_NV)
        log_total_N = logits_NV.exp().sum(dim=-1).log()
        is_target_NV = _is_target(targets_N, raw_NV.size(1))
        chosen_N = torch.where(is_target_NV, logits_NV, 0.0).sum(dim=-1)
        ctx.save_for_backward(raw_NV, targets_N, log_total_N)
        return torch.where(targets_N == IGNORE_TARGET, 0.0, log_total_N - chosen_N)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """`(softmax - onehot) * dy/draw`, in the dtype of the raw logits."""
        raw_NV, targets_N, log_total_N = ctx.saved_tensors
        weight_N = torch.where(targets_N == IGNORE_TARGET, 0.0, grads[0])
        half_NV = torch.sigmoid(raw_NV.float() * (2.0 / LOGIT_CAP))
        logits_NV = (2.0 * LOGIT_CAP) * half_NV - LOGIT_CAP
        softmax_NV = (logits_NV - log_total_N[:, None]).exp()
        onehot_NV = _is_target(targets_N, raw_NV.size(1)).float()
        slope_NV = 4.0 * half_NV * (1.0 - half_NV)
        grad_NV = weight_N[:, None] * (softmax_NV - onehot_NV) * slope_NV
        return grad_NV.to(raw_NV.dtype), None


def _is_target(targets_N: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Bool (N, V), true at the target of each row; a comparison fuses where a gather would not."""
    return torch.arange(vocab_size, device=targets_N.device) == targets_N[:, None]
