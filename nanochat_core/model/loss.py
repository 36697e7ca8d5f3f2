"""Soft-capped cross entropy of the head, in chunks of rows: logits are never held whole.

While the logits of a chunk are at hand, their gradient costs little more than the loss itself. So
training makes both in one pass, and `backward` only multiplies.

Shapes: N rows (batch * positions), R rows of a chunk, C channels, V vocabulary, P padded
vocabulary; `...` any leading axes.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from nanochat_core.model.fp8 import ALIGNMENT, Fp8Head, quantize
from nanochat_core.model.layers import Linear

Reduction = Literal["sum", "mean", "none"]

LOGIT_CAP = 15.0
"""Logits are squeezed smoothly into (-cap, cap), which keeps the loss calm (Gemma 2)."""
IGNORE_TARGET = -1
CHUNK_ELEMENTS = 2**26
"""Float32 logits of a chunk: 256 MiB."""
CPU_CHUNK_ELEMENTS = 2**21
"""On a CPU a chunk stays near the caches and asks the system for no new pages. Forward and backward
at N = V = 2048, C = 128: 34 ms in bfloat16 and 72 ms in float32, against 52 and 76 in one chunk."""
MIN_CPU_ROWS = 64
"""Fewer rows of a large vocabulary would spend their time adding up the weight's gradient."""
ROW_MULTIPLE = 16
"""Chunks are multiples of this: matrix kernels like it, those of fp8 insist (ALIGNMENT)."""


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


def summed_loss(
    x_NC: torch.Tensor,
    head: Linear,
    targets_N: torch.Tensor,
    token_weights_N: torch.Tensor | None,
    *,
    vocab_size: int,
    compiled: bool,
) -> torch.Tensor:
    """Cross entropies of soft-capped logits, each times its weight if there are any, added up.

    A float32 scalar in nats; targets of -1 count 0. Where gradients are recorded they are computed
    here and now: call it once per backward.
    """
    weights_N = _row_weights(targets_N, token_weights_N)
    if not _records_gradients(x_NC, head):
        how = How(vocab_size, compiled, fp8=False)
        return (Chunks(x_NC, head.weight, targets_N, how).losses() * weights_N).sum()
    how = How(vocab_size, compiled, fp8=head.fp8)
    x_NC, targets_N, weights_N = _aligned(x_NC, targets_N, weights_N, how)
    loss: torch.Tensor = _SummedLoss.apply(  # type: ignore[no-untyped-call]
        x_NC, head.weight, targets_N, weights_N, how
    )
    return loss


def row_losses(
    x_NC: torch.Tensor,
    head: Linear,
    targets_N: torch.Tensor,
    *,
    vocab_size: int,
    compiled: bool = False,
) -> torch.Tensor:
    """Cross entropy of soft-capped logits of every row, (N,) float32 in nats; 0 where -1.

    `backward` makes the logits a second time; for training there is `summed_loss`.
    """
    weights_N = _row_weights(targets_N, None)
    if not _records_gradients(x_NC, head):
        how = How(vocab_size, compiled, fp8=False)
        return Chunks(x_NC, head.weight, targets_N, how).losses() * weights_N
    how = How(vocab_size, compiled, fp8=head.fp8)
    num_rows = x_NC.size(0)
    x_NC, targets_N, weights_N = _aligned(x_NC, targets_N, weights_N, how)
    losses_N: torch.Tensor = _RowLosses.apply(  # type: ignore[no-untyped-call]
        x_NC, head.weight, targets_N, how
    )
    return (losses_N * weights_N)[:num_rows]


def head_loss_bytes(
    num_rows: int,
    channels: int,
    vocab_size: int,
    dtype: torch.dtype,
    *,
    compiled: bool = True,
    device_type: str = "cuda",
) -> int:
    """Most bytes that `summed_loss` and its backward hold at a time beyond their inputs.

    `vocab_size` is the padded one. Not for fp8; what matrix kernels use inside is not counted.
    """
    how = How(vocab_size, compiled, fp8=False)
    rows = chunk_rows(num_rows, vocab_size, dtype, device_type, how)
    logits, weight = rows * vocab_size, vocab_size * channels
    # Eager: sigmoid, exponential, gradient (float32) and the comparison with the targets. A CPU's
    # compiler stores the first two, a GPU's computes them twice.
    bytes_more = 13 if not compiled else 8 if device_type == "cpu" else 0
    gradients = num_rows * channels * dtype.itemsize + 4 * weight
    # The weight in the compute dtype; and a chunk's share of its gradient, while no copy of the
    # logits is alive.
    low = 0 if dtype == torch.float32 else weight * dtype.itemsize
    forward = gradients + low + logits * dtype.itemsize + max(bytes_more * logits, low)
    return max(forward, 2 * gradients)


class How(NamedTuple):
    """What a pass over the head is like."""

    vocab_size: int
    compiled: bool
    fp8: bool


class _SummedLoss(torch.autograd.Function):
    """The weighted sum of losses, whose gradients are ready when it is."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        """The loss; kept for backward are its gradients (N, C) and (P, C), but no logits.

        What the loss is multiplied with later (float16's loss scale, one over the tokens of the
        step) is not yet in them, and need not be, even in float16 (smallest number 6e-8): each row
        of a *sum* has a gradient of the size of the weight's elements, 1e-3 at the start and more
        later, however large the batch. Only a mean would make it small.
        """
        x_NC, weight_PC, targets_N, weights_N, how = args
        chunks = Chunks(x_NC, weight_PC, targets_N, how)
        losses_N, *gradients = chunks.losses_and_gradients(weights_N)
        ctx.save_for_backward(*gradients)
        loss: torch.Tensor = (losses_N * weights_N).sum()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The kept gradients times that of the sum."""
        x_gradient_NC, weight_gradient_PC = ctx.saved_tensors
        # Shaped (1, 1): a scalar would be rounded to the 16 bits of its partner first, where a loss
        # scale may overflow and 1/tokens vanish. With `out` a GPU makes no float32 copy.
        factor_11 = grads[0].view(1, 1)
        scaled_NC = torch.mul(x_gradient_NC, factor_11, out=torch.empty_like(x_gradient_NC))
        return scaled_NC, weight_gradient_PC * factor_11, None, None, None


class _RowLosses(torch.autograd.Function):
    """Losses by row. Only backward learns what each row weighs; it makes the logits again."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        """Losses (N,), of rows without a target too."""
        x_NC, weight_PC, targets_N, ctx.how = args
        ctx.save_for_backward(x_NC, weight_PC, targets_N)
        return Chunks(x_NC, weight_PC, targets_N, ctx.how).losses()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of `x` and of the weight."""
        x_NC, weight_PC, targets_N = ctx.saved_tensors
        chunks = Chunks(x_NC, weight_PC, targets_N, ctx.how)
        _, x_gradient_NC, weight_gradient_PC = chunks.losses_and_gradients(grads[0])
        return x_gradient_NC, weight_gradient_PC, None, None


class Chunks:
    """The head's logits, one chunk of rows after the other."""

    def __init__(
        self, x_NC: torch.Tensor, weight_PC: torch.Tensor, targets_N: torch.Tensor, how: How
    ) -> None:
        self.targets_N, self.how = targets_N, how
        self.num_rows = chunk_rows(
            x_NC.size(0), weight_PC.size(0), x_NC.dtype, x_NC.device.type, how
        )
        self.head = (
            Fp8Head(x_NC, weight_PC, _function(quantize, how))
            if how.fp8
            else PlainHead(x_NC, weight_PC, self.num_rows)
        )

    def losses(self) -> torch.Tensor:
        """Losses (N,) in float32; those of rows without a target mean nothing."""
        function = _function(chunk_losses, self.how)
        losses_N = self.targets_N.new_empty(self.targets_N.size(0), dtype=torch.float32)
        for rows in self._rows():
            raw_RV = self.head.logits(rows)[:, : self.how.vocab_size]
            losses_N[rows] = function(raw_RV, _raw_targets(raw_RV, self.targets_N[rows]))
        return losses_N

    def losses_and_gradients(
        self, weights_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same, and gradients of their weighted sum: (N, C) of `x`, (P, C) of the weight.

        The first is in the dtype of `x`, the second is added up in float32.
        """
        function, vocab_size = _function(chunk_gradient, self.how), self.how.vocab_size
        losses_N = torch.empty_like(weights_N)
        weights_N = self.head.start_gradients(weights_N)
        for rows in self._rows():
            raw_RP = self.head.logits(rows)
            gradient_RP = self.head.gradient_buffer(raw_RP)
            raw_RV = raw_RP[:, :vocab_size]
            gradient_RV = raw_RV if gradient_RP is raw_RP else gradient_RP[:, :vocab_size]
            targets_R = self.targets_N[rows]
            losses_N[rows] = function(
                raw_RV, _raw_targets(raw_RV, targets_R), targets_R, weights_N[rows], gradient_RV
            )
            gradient_RP[:, vocab_size:].zero_()
            self.head.add_gradients(gradient_RP, rows)
        return losses_N, self.head.x_gradient_NC, self.head.weight_gradient_PC

    def _rows(self) -> Iterator[slice]:
        total = self.targets_N.size(0)
        for start in range(0, total, self.num_rows):
            yield slice(start, min(start + self.num_rows, total))


class PlainHead:
    """The three matrix products of a chunk, in the dtype of `x`."""

    x_gradient_NC: torch.Tensor
    weight_gradient_PC: torch.Tensor

    def __init__(self, x_NC: torch.Tensor, weight_PC: torch.Tensor, num_rows: int) -> None:
        self.x_NC, self.weight_PC = x_NC, weight_PC.to(x_NC.dtype)
        # The same memory for every chunk, and for its gradient.
        self.raw_RP = x_NC.new_empty(num_rows, weight_PC.size(0))

    def logits(self, rows: slice) -> torch.Tensor:
        """Raw logits (R, P), until the next call."""
        x_RC = self.x_NC[rows]
        return torch.mm(x_RC, self.weight_PC.t(), out=self.raw_RP[: x_RC.size(0)])

    def start_gradients(self, weights_N: torch.Tensor) -> torch.Tensor:
        """Make room for the gradients; returns the row weights to compute them with."""
        self.x_gradient_NC = torch.empty_like(self.x_NC)
        self.weight_gradient_PC = torch.zeros_like(self.weight_PC, dtype=torch.float32)
        return weights_N

    def gradient_buffer(self, raw_RP: torch.Tensor) -> torch.Tensor:
        """Where the gradient of the logits goes: it takes their place."""
        return raw_RP

    def add_gradients(self, gradient_RP: torch.Tensor, rows: slice) -> None:
        """Both products of the gradient of a chunk's logits."""
        torch.mm(gradient_RP, self.weight_PC, out=self.x_gradient_NC[rows])
        if self.weight_PC.dtype == torch.float32:
            self.weight_gradient_PC.addmm_(gradient_RP.t(), self.x_NC[rows])
        else:
            self.weight_gradient_PC += gradient_RP.t() @ self.x_NC[rows]


def chunk_losses(raw_RV: torch.Tensor, raw_target_R: torch.Tensor) -> torch.Tensor:
    """`log(sum(exp(y))) - y[target]` of every row, with y the capped logits, in float32.

    Capped logits cannot overflow float32's exponential, so no pass looks for a maximum.
    """
    return soft_cap(raw_RV).exp().sum(dim=-1).log() - soft_cap(raw_target_R)


def chunk_gradient(
    raw_RV: torch.Tensor,
    raw_target_R: torch.Tensor,
    targets_R: torch.Tensor,
    weights_R: torch.Tensor,
    gradient_RV: torch.Tensor,
) -> torch.Tensor:
    """Losses, and into `gradient` that of their weighted sum by the raw logits; may be `raw`.

    `(softmax - onehot) * dy/draw`, of which dy/draw is `1 - tanh^2` or, of the sigmoid h,
    `4 h (1 - h)`. A compiler makes it one pass over memory.
    """
    half_RV = torch.sigmoid(raw_RV.float() * (2.0 / LOGIT_CAP))
    exp_RV = half_RV.mul(2.0 * LOGIT_CAP).sub_(LOGIT_CAP).exp_()
    total_R = exp_RV.sum(dim=-1)
    half_target_R = torch.sigmoid(raw_target_R.float() * (2.0 / LOGIT_CAP))
    y_target_R = (2.0 * LOGIT_CAP) * half_target_R - LOGIT_CAP
    scale_R = 4.0 * weights_R
    slope_target_R = scale_R * half_target_R * (1.0 - half_target_R)
    target_R = (y_target_R.exp() / total_R - 1.0) * slope_target_R
    # In place for those who run it eager: logits in float32 are what takes most of the memory.
    other_RV = exp_RV.mul_((scale_R / total_R)[:, None]).mul_(half_RV).mul_(1.0 - half_RV)
    # A comparison fuses where a scatter would not.
    columns_V = torch.arange(raw_RV.size(1), device=raw_RV.device)
    is_target_RV = columns_V == targets_R[:, None]
    gradient_RV.copy_(torch.where(is_target_RV, target_R[:, None], other_RV))
    return total_R.log() - y_target_R


def chunk_rows(
    num_rows: int, padded_vocab_size: int, dtype: torch.dtype, device_type: str, how: How
) -> int:
    """Rows of a chunk: all chunks alike if possible, as a compiler makes a kernel for each size."""
    most = CHUNK_ELEMENTS // padded_vocab_size
    if device_type == "cpu":
        most = min(most, max(MIN_CPU_ROWS, CPU_CHUNK_ELEMENTS // padded_vocab_size))
    elif how.compiled:
        # Fused kernels have no float32 logits, so that more rows fit: at V = 32,768 and C = 768
        # adding up the weight's gradient takes a GPU 5 % of a chunk's time instead of 10 %
        # (calculated from 302 MB and 3 TB/s).
        most = most * torch.float32.itemsize // dtype.itemsize
    units = math.ceil(num_rows / ROW_MULTIPLE)
    fewest = math.ceil(units / max(1, most // ROW_MULTIPLE))
    counts = range(max(1, fewest), 2 * fewest)
    count = next((count for count in counts if units % count == 0), max(1, fewest))
    return ROW_MULTIPLE * math.ceil(units / count)


def _records_gradients(x_NC: torch.Tensor, head: Linear) -> bool:
    return torch.is_grad_enabled() and (x_NC.requires_grad or head.weight.requires_grad)


def _row_weights(targets_N: torch.Tensor, token_weights_N: torch.Tensor | None) -> torch.Tensor:
    """Float32 weights (N,), 0 for rows without a target."""
    if token_weights_N is None:
        return (targets_N != IGNORE_TARGET).float()
    return torch.where(targets_N == IGNORE_TARGET, 0.0, token_weights_N.float())


def _aligned(
    x_NC: torch.Tensor, targets_N: torch.Tensor, weights_N: torch.Tensor, how: How
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """With rows of zeros in the end, if fp8 needs them: the weight's gradient sums over rows."""
    padding = -x_NC.size(0) % ALIGNMENT if how.fp8 else 0
    if padding == 0:
        return x_NC, targets_N, weights_N
    targets_N = F.pad(targets_N, (0, padding), value=IGNORE_TARGET)
    return F.pad(x_NC, (0, 0, 0, padding)), targets_N, F.pad(weights_N, (0, padding))


def _raw_targets(raw_RV: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """The raw logit (R,) of each row's target; of token 0 where there is none."""
    return raw_RV.gather(1, targets_R.clamp(min=0)[:, None]).squeeze(1)


def _function(function: Callable[..., Any], how: How) -> Callable[..., Any]:
    """Compiled if it should be; inside of a function that is being compiled everything is."""
    if how.compiled and not torch.compiler.is_compiling():
        return _compiled(function)
    return function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)
