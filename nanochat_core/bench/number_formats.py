"""Which number formats a device multiplies, whether right and natively, and how fast.

Shapes: N tokens, I input channels, O output channels.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat_core.bench.roofline import Speed, float32_precision, measure_matmul
from nanochat_core.model.fp8 import FORWARD, fp8_linear
from nanochat_core.training.precision import CPU_BFLOAT16_FLAGS, MIN_CUDA_BFLOAT16

TF32 = "tf32"
FLOAT8 = "float8"
FORMATS = {
    "float32": torch.float32,
    TF32: torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    FLOAT8: FORWARD,
}
ALLOWED_ERRORS = {"float32": 1e-5, TF32: 2e-3, "bfloat16": 1e-2, "float16": 2e-3, FLOAT8: 8e-2}
"""Of a product, relative to its norm: several times what rounding the factors makes, which is at
most 2^-24, 2^-11, 2^-9, 2^-11 and 2^-4 of each number."""
CUDA_CAPABILITIES = {
    "float32": (0, 0),
    TF32: (8, 0),
    "bfloat16": MIN_CUDA_BFLOAT16,
    "float16": (7, 0),
    FLOAT8: (8, 9),
}
"""From which capability on tensor cores multiply it (CUDA programming guide, table of types)."""
CPU_FLAGS = {
    "float32": (),
    "bfloat16": CPU_BFLOAT16_FLAGS,
    "float16": ("avx512_fp16", "amx_fp16"),
}
FP8_ALLOWED_ERROR = 0.12
"""Of a training product and its gradients: e5m2 rounds a number by 5 % on average, e4m3 by 3 %."""


@dataclass(frozen=True)
class FormatFinding:
    """One number format on one device; `reason` says why it does not work."""

    name: str
    works: bool
    is_native: bool
    error: float | None = None
    speed: Speed | None = None
    reason: str = ""


def examine_format(name: str, device: torch.device, *, seconds: float = 0.5) -> FormatFinding:
    """Multiply two matrices in that format, compare with float64, and measure larger ones."""
    native = is_native(name, device)
    if name == TF32 and not native:
        return FormatFinding(name, False, False, reason="needs CUDA capability 8.0")
    precision = "high" if name == TF32 else "highest"
    # Only there do the two differ; the CPU has settings of its own for it.
    with float32_precision(precision) if device.type == "cuda" else nullcontext():
        try:
            error = product_error(name, device)
            speed = measure_matmul(device, FORMATS[name], seconds=seconds)
        except (RuntimeError, TypeError, NotImplementedError) as trouble:
            return FormatFinding(name, False, native, reason=_first_line(trouble))
    allowed = ALLOWED_ERRORS[name]
    if not error <= allowed:
        reason = f"wrong: off by {error:.1e}, allowed {allowed:.0e}"
        return FormatFinding(name, False, native, error, speed, reason)
    return FormatFinding(name, True, native, error, speed)


def is_native(name: str, device: torch.device) -> bool:
    """Whether the hardware has instructions for products in that format."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return torch.version.hip is not None or capability >= CUDA_CAPABILITIES[name]
    if device.type == "cpu":
        flags = CPU_FLAGS.get(name)
        return flags is not None and (not flags or bool(set(flags) & cpu_flags()))
    return name in ("float32", "float16")


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the CPU can do, in the words of the kernel; empty where there is no such file."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(value.split())
    return frozenset()


def product_error(name: str, device: torch.device, size: int = 256) -> float:
    """Distance of a product from the one in float64, relative to the norm of that."""
    dtype = FORMATS[name]
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator) for _ in range(2))
    expected = left.double() @ right.double()
    on_device = left.to(device), right.to(device)
    if dtype.itemsize == 1:
        scale = torch.ones((), device=device)
        columns = on_device[1].to(dtype).t().contiguous().t()
        result = torch._scaled_mm(
            on_device[0].to(dtype), columns, scale, scale, out_dtype=torch.bfloat16
        )
    else:
        result = on_device[0].to(dtype) @ on_device[1].to(dtype)
    return _relative_error(result, expected)


def fp8_training_error(device: torch.device, size: int = 256) -> float:
    """The largest relative error of a training product in fp8 and of its two gradients."""
    generator = torch.Generator().manual_seed(0)
    x_NI, weight_OI, grad_NO = (torch.randn(size, size, generator=generator) for _ in range(3))
    x_NI = x_NI.bfloat16()
    expected = (
        x_NI.double() @ weight_OI.double().t(),
        grad_NO.double() @ weight_OI.double(),
        grad_NO.double().t() @ x_NI.double(),
    )
    x = x_NI.to(device).requires_grad_()
    weight = weight_OI.to(device).requires_grad_()
    y = fp8_linear(x, weight)
    grads = torch.autograd.grad(y, (x, weight), grad_NO.to(device, y.dtype))
    return max(_relative_error(a, b) for a, b in zip((y, *grads), expected, strict=True))


def _relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    difference = result.detach().cpu().double() - expected
    return float(difference.norm() / expected.norm())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
