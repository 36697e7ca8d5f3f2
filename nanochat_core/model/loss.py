"""Soft-capped logits and their cross entropy.

Shapes: B batch, T positions, C channels, V vocabulary, P padded vocabulary, N = B * T.
"""

from typing import Any, Literal

import torch

from nanochat_core.model.layers import Linear

Reduction = Literal["sum", "mean", "none"]

LOGIT_CAP = 15.0
"""Logits are squeezed smoothly into (-cap, cap), which keeps the loss calm (Gemma 2)."""
IGNORE_TARGET = -1
CHUNK_ELEMENTS = 2**26
"""256 MiB of float32 logits at a time, of which an eager pass holds a few copies."""


def soft_cap(raw: torch.Tensor) -> torch.Tensor:
    """`cap * tanh(raw / cap)` in float32.

    Written with a sigmoid, of which one exponential is vectorised everywhere; tanh made the head
    of a small model twice as slow on a CPU.
    """
    return (2.0 * LOGIT_CAP) * torch.sigmoid(raw.float() * (2.0 / LOGIT_CAP)) - LOGIT_CAP


def head_logits(x: torch.Tensor, head: Linear, vocab_size: int) -> torch.Tensor:
    """Logits (..., V) of `x` (..., C) before the cap, in its dtype, without padding columns."""
    logits: torch.Tensor = head(x)[..., :vocab_size]
    return logits


def token_losses(
    raw_BTV: torch.Tensor, targets_BT: torch.Tensor, reduction: Reduction
) -> torch.Tensor:
    """Cross entropy of soft-capped logits in nats, float32: a scalar, or (B, T) with "none".

    Targets of -1 count 0; "mean" is over the others, and NaN where there are none.
    """
    losses_N = _row_losses(raw_BTV.flatten(0, 1), targets_BT.flatten())
    if reduction == "none":
        return losses_N.view_as(targets_BT)
    if reduction == "sum":
        return losses_N.sum()
    return losses_N.sum() / (targets_BT != IGNORE_TARGET).sum()


def _row_losses(raw_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Losses (N,); a compiler finds the two passes of `CappedCrossEntropy` by itself."""
    if torch.compiler.is_compiling():
        return _losses(raw_NV, targets_N)[0]
    losses_N: torch.Tensor = CappedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        raw_NV, targets_N
    )
    return losses_N


class CappedCrossEntropy(torch.autograd.Function):
    """Losses (N,) of raw logits (N, V), in chunks of rows; only `raw` is kept for backward."""

    @staticmethod
    def forward(ctx: Any, raw_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """`log(sum(exp(y))) - y[target]` with y the capped logits."""
        parts = [_losses(*part) for part in _row_chunks(raw_NV, targets_N)]
        losses_N, log_total_N = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        ctx.save_for_backward(raw_NV, targets_N, log_total_N)
        return losses_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """`(softmax - onehot) * dy/draw`, in the dtype of the raw logits."""
        parts = _row_chunks(*ctx.saved_tensors, grads[0])
        return torch.cat([_raw_gradient(*part) for part in parts]), None


def _row_chunks(raw_NV: torch.Tensor, *others: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Rows whose float32 logits fit in `CHUNK_ELEMENTS`."""
    rows = max(1, CHUNK_ELEMENTS // raw_NV.size(1))
    pieces = (torch.split(tensor, rows) for tensor in (raw_NV, *others))
    return list(zip(*pieces, strict=True))


def _losses(raw_NV: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and log of the softmax's denominator of every row.

    Capped logits cannot overflow float32's exponential, so no pass looks for a maximum.
    """
    logits_NV = soft_cap(raw_NV)
    log_total_N = logits_NV.exp().sum(dim=-1).log()
    is_target_NV = _is_target(targets_N, raw_NV.size(1))
    chosen_N = torch.where(is_target_NV, logits_NV, 0.0).sum(dim=-1)
    losses_N = torch.where(targets_N == IGNORE_TARGET, 0.0, log_total_N - chosen_N)
    return losses_N, log_total_N


def _raw_gradient(
    raw_NV: torch.Tensor, targets_N: torch.Tensor, log_total_N: torch.Tensor, grad_N: torch.Tensor
) -> torch.Tensor:
    """Gradient of the loss with respect to the logits before the cap, by the chain rule."""
    weight_N = torch.where(targets_N == IGNORE_TARGET, 0.0, grad_N)
    half_NV = torch.sigmoid(raw_NV.float() * (2.0 / LOGIT_CAP))
    softmax_NV = ((2.0 * LOGIT_CAP) * half_NV - LOGIT_CAP - log_total_N[:, None]).exp()
    onehot_NV = _is_target(targets_N, raw_NV.size(1)).float()
    slope_NV = 4.0 * half_NV * (1.0 - half_NV)
    return (weight_N[:, None] * (softmax_NV - onehot_NV) * slope_NV).to(raw_NV.dtype)


def _is_target(targets_N: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Bool (N, V), true at the target of each row; a comparison fuses where a gather would not."""
    return torch.arange(vocab_size, device=targets_N.device) == targets_N[:, None]
