"""Matrix multiplications of training in 8-bit floating point, which an H100 does twice as fast.

Numbers are e4m3 (activations, weights) or e5m2 (gradients, which need range more than digits), each
tensor with one scale taken from its own largest magnitude just before the product (formats:
arXiv:2209.05433). Master weights and their gradients stay float32. The head, whose logits are never
held whole, has its products in chunks of rows; the loss bounds their gradient.

Shapes: N tokens, I input channels, O output channels; `...` any leading axes. Of the head: R rows
of a chunk, C channels, P padded vocabulary.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from nanochat_core.errors import ConfigError

log = logging.getLogger(__name__)

Quantize = Callable[[torch.Tensor, torch.dtype], tuple[torch.Tensor, torch.Tensor]]

FORWARD = torch.float8_e4m3fn
GRADIENT = torch.float8_e5m2
MIN_CUDA_FP8 = (8, 9)
ALIGNMENT = 16
"""cuBLASLt multiplies fp8 matrices whose sizes are multiples of this."""
MIN_SIZE = 128
"""Below, finding the scales costs more than the faster product gives back."""
MIN_AMAX = 1e-30
"""Keeps the scale of a tensor of zeros, and one over it, finite in float32."""


def fits_fp8(in_features: int, out_features: int) -> bool:
    """Whether a Linear of this size is multiplied in fp8."""
    return all(size % ALIGNMENT == 0 and size >= MIN_SIZE for size in (in_features, out_features))


def check_fp8(device: torch.device, compute_dtype: torch.dtype) -> None:
    """Refuse a device that cannot train in fp8; a CPU can, slowly, and says so in the log."""
    if device.type == "cpu":
        log.warning("fp8 is emulated on a CPU: for tests, slower than bfloat16")
    elif device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < MIN_CUDA_FP8:
            name = torch.cuda.get_device_name(device)
            raise _no_fp8(f"{name} with compute capability {capability[0]}.{capability[1]}")
    else:
        raise _no_fp8(f"a device of type {device.type}")
    if compute_dtype != torch.bfloat16:
        raise ConfigError(
            f"fp8=True with activations in {str(compute_dtype).removeprefix('torch.')}; "
            "set compute_dtype=bfloat16, or fp8=False"
        )


def _no_fp8(found: str) -> ConfigError:
    return ConfigError(
        f"fp8=True on {found}, which has no fp8 matrix multiplication; it needs CUDA compute "
        f"capability {MIN_CUDA_FP8[0]}.{MIN_CUDA_FP8[1]} or more (L40S, RTX 4090, H100 and newer). "
        "Set fp8=False"
    )


def fp8_linear(x: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """`x @ weight.T`, (..., I) to (..., O) in the dtype of `x`, all three products in fp8."""
    x_NI = x.flatten(0, -2)
    num_tokens = x_NI.size(0)
    # The weight's gradient sums over tokens, so their number is a matrix size too. Rows of zeros
    # change neither a scale nor a sum.
    padding = -num_tokens % ALIGNMENT
    if padding:
        x_NI = F.pad(x_NI, (0, 0, 0, padding))
    y_NO: torch.Tensor = _Fp8Product.apply(  # type: ignore[no-untyped-call]
        x_NI, weight_OI
    )
    return y_NO[:num_tokens].view(*x.shape[:-1], weight_OI.size(0))


class _Fp8Product(torch.autograd.Function):
    """(N, I) times (O, I) transposed; keeps both factors for backward as fp8, a byte a number."""

    @staticmethod
    def forward(ctx: Any, x_NI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
        """The product (N, O), in the dtype of `x`."""
        x8_NI, x_scale = quantize(x_NI, FORWARD)
        weight8_OI, weight_scale = quantize(weight_OI, FORWARD)
        ctx.save_for_backward(x8_NI, x_scale, weight8_OI, weight_scale)
        # Fast sums keep about 14 bits on H100 (arXiv:2412.19437, section 3.3): enough for
        # activations, while gradients add up in float32.
        return torch._scaled_mm(
            x8_NI,
            weight8_OI.t(),
            x_scale,
            weight_scale,
            out_dtype=x_NI.dtype,
            use_fast_accum=True,
        )

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of `x` (in its dtype) and of the weight (float32, as the master weights)."""
        x8_NI, x_scale, weight8_OI, weight_scale = ctx.saved_tensors
        grad8_NO, grad_scale = quantize(grads[0], GRADIENT)
        grad_x_NI = torch._scaled_mm(
            grad8_NO,
            _column_major(weight8_OI),
            grad_scale,
            weight_scale,
            out_dtype=grads[0].dtype,
        )
        grad_weight_OI = torch._scaled_mm(
            grad8_NO.t().contiguous(),
            _column_major(x8_NI),
            grad_scale,
            x_scale,
            out_dtype=torch.float32,
        )
        return grad_x_NI, grad_weight_OI


class Fp8Head:
    """The head's three matrix products for chunks of rows, all in fp8.

    `x` and the weight have one scale each, as in any other Linear; they are made fp8 once a call.
    """

    x_gradient_NC: torch.Tensor
    weight_gradient_PC: torch.Tensor

    def __init__(self, x_NC: torch.Tensor, weight_PC: torch.Tensor, quantize: Quantize) -> None:
        self.dtype = x_NC.dtype
        self.x8_NC, self.x_scale = quantize(x_NC, FORWARD)
        self.weight8_PC, self.weight_scale = quantize(weight_PC, FORWARD)

    def logits(self, rows: slice) -> torch.Tensor:
        """Raw logits (R, P), in the dtype of `x`."""
        return torch._scaled_mm(
            self.x8_NC[rows],
            self.weight8_PC.t(),
            self.x_scale,
            self.weight_scale,
            out_dtype=self.dtype,
            use_fast_accum=True,
        )

    def start_gradients(self, weights_N: torch.Tensor) -> torch.Tensor:
        """Make room for the gradients; returns the row weights to compute them with.

        A gradient of a row's logits is its weight times a number in [-1, 1], and some row of a
        batch is about that far off: the bound is as good a scale as the largest magnitude, and
        costs no pass over the logits.
        """
        bound = weights_N.abs().amax().clamp(min=MIN_AMAX)
        self.gradient_scale = bound / torch.finfo(GRADIENT).max
        self.weight8_by_columns_PC = _column_major(self.weight8_PC)
        self.x_gradient_NC = torch.empty_like(self.x8_NC, dtype=self.dtype)
        self.weight_gradient_PC = torch.zeros_like(self.weight8_PC, dtype=torch.float32)
        return weights_N / self.gradient_scale

    def gradient_buffer(self, raw_RP: torch.Tensor) -> torch.Tensor:
        """Where the gradient of the logits goes, a byte a number."""
        return torch.empty_like(raw_RP, dtype=GRADIENT)

    def add_gradients(self, gradient8_RP: torch.Tensor, rows: slice) -> None:
        """Both products of the gradient of a chunk's logits."""
        self.x_gradient_NC[rows] = torch._scaled_mm(
            gradient8_RP,
            self.weight8_by_columns_PC,
            self.gradient_scale,
            self.weight_scale,
            out_dtype=self.dtype,
        )
        self.weight_gradient_PC += torch._scaled_mm(
            gradient8_RP.t().contiguous(),
            _column_major(self.x8_NC[rows]),
            self.gradient_scale,
            self.x_scale,
            out_dtype=torch.float32,
        )


def quantize(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` as fp8, row-major, and the float32 scale that gives it back when multiplied.

    The largest magnitude lands on the largest number of the format, so nothing overflows; what is
    not finite makes the scale not finite, and with it the product.
    """
    amax = x.abs().amax().float().clamp(min=MIN_AMAX)
    largest = torch.finfo(dtype).max
    return (x.float() * (largest / amax)).to(dtype).contiguous(), amax / largest


def _column_major(matrix: torch.Tensor) -> torch.Tensor:
    """The same matrix laid out by columns, as the second factor of an fp8 product must be."""
    return matrix.t().contiguous().t()
