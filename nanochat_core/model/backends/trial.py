"""The self-test of one attention backend on one device, before anything is trained with it.

Shapes: B batch, T positions, H query heads, G key heads, D head dim.
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from nanochat_core.model.attention import QK_SCALE, QUERY_BLOCK, Backend, repeat_heads
from nanochat_core.model.backends.hardware import UnavailableError
from nanochat_core.model.backends.opening import open_backend
from nanochat_core.model.layers import norm

HEAD_DIM = 128
TRIAL_BATCH, TRIAL_HEADS = 2, 4
TRIAL_LENGTH = QUERY_BLOCK + 64
"""More than a block of queries of SDPA, and no multiple of the 128 positions of flash kernels."""
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest error over largest magnitude: about three times the worst of right kernels. They round
probabilities, and some the partial sums of gradients, to the dtype (half a unit is 2^-9 of a number
in bfloat16, 2^-12 in float16), and the largest of a million errors is several times the usual one.
In bfloat16 SDPA on a CPU is off by 0.003 forward and 0.012 in the gradients of keys, FlashAttention
3 on an H100 by 0.002 and 0.003; float16 has an eighth of that; float32, which sums in another
order, 3e-7. One key too many in a short window is off by 1, so nothing hides between the two."""
SETTLING_RUNS, TIMED_RUNS, ROUNDS = 2, 10, 3
MAX_REASON = 300


@dataclass(frozen=True)
class Verdict:
    """What a trial found. `reason` says it in words, `error` is relative to what is expected.

    `milliseconds`: forward and backward of a full and a windowed layer together. `is_lasting` is
    False where the next try may go otherwise, as after a package is installed.
    """

    backend: str
    passes: bool
    error: float | None
    milliseconds: float | None
    reason: str
    is_lasting: bool = True


class Case(NamedTuple):
    """One layer of a trial: a window of at least the length is a full one."""

    batch: int
    length: int
    heads: int
    groups: int
    window: int


CASES = (
    Case(TRIAL_BATCH, TRIAL_LENGTH, TRIAL_HEADS, TRIAL_HEADS, TRIAL_LENGTH),
    Case(TRIAL_BATCH, TRIAL_LENGTH, TRIAL_HEADS, TRIAL_HEADS // 2, TRIAL_LENGTH),
    # So short that one key more or less is seen at once, and one across blocks of 128.
    Case(TRIAL_BATCH, TRIAL_LENGTH, TRIAL_HEADS, TRIAL_HEADS, 7),
    Case(TRIAL_BATCH, TRIAL_LENGTH, TRIAL_HEADS, TRIAL_HEADS // 2, 200),
)
GPU_LAYERS = (Case(16, 2048, 12, 12, 2048), Case(16, 2048, 12, 12, 512))
"""One micro-batch of a depth-12 model."""
CPU_LAYERS = (Case(2, 256, 2, 2, 256), Case(2, 256, 2, 2, 128))
"""As the demo, a quarter of it."""


def try_backend(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int = HEAD_DIM
) -> Verdict:
    """Open a backend and put it to the test; whatever goes wrong becomes a verdict."""
    try:
        attend = open_backend(name, device)
    except UnavailableError as error:
        return Verdict(name, False, None, None, str(error), is_lasting=False)
    except Exception as error:  # noqa: BLE001  a broken library must cost its backend, not the run
        return Verdict(name, False, None, None, _in_words(error), is_lasting=False)
    return try_attention(name, attend, device, dtype, head_dim)


def try_attention(
    name: str, attend: Backend, device: torch.device, dtype: torch.dtype, head_dim: int = HEAD_DIM
) -> Verdict:
    """Forward and backward against float32, then the time; whatever goes wrong is a verdict."""
    try:
        return _judge(name, attend, device, dtype, head_dim)
    except UnavailableError as error:
        return Verdict(name, False, None, None, str(error))
    except torch.OutOfMemoryError as error:
        return Verdict(name, False, None, None, _in_words(error), is_lasting=False)
    except Exception as error:  # noqa: BLE001  a kernel that fails must cost its backend, not the run
        return Verdict(name, False, None, None, _in_words(error))
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _judge(
    name: str, attend: Backend, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Verdict:
    error = largest_error(attend, device, dtype, head_dim, CASES)
    allowed = tolerance(device, dtype)
    if not math.isfinite(error):
        return Verdict(name, False, None, None, "gives numbers that are not finite")
    if error > allowed:
        reason = f"wrong: off by {error:.2g} of the largest number, allowed are {allowed:.2g}"
        return Verdict(name, False, error, None, reason)
    milliseconds = layer_milliseconds(attend, device, dtype, head_dim)
    reason = f"off by {error:.2g} of {allowed:.2g} allowed, {milliseconds:.3g} ms"
    return Verdict(name, True, error, milliseconds, reason)


def _in_words(error: BaseException) -> str:
    """The first line of an error and of what caused it, which is what a table has room for."""
    lines = str(error).strip().splitlines()
    words = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    if error.__cause__ is not None:
        words = f"{words}, from {_in_words(error.__cause__)}"
    return words[:MAX_REASON]


def tolerance(device: torch.device, dtype: torch.dtype) -> float:
    """What a right backend stays within; TF32 multiplies float32 with the digits of float16."""
    if dtype == torch.float32 and device.type == "cuda":
        is_exact = torch.get_float32_matmul_precision() == "highest"
        return TOLERANCES[torch.float32 if is_exact else torch.float16]
    return TOLERANCES[dtype]


def largest_error(
    attend: Backend,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    cases: tuple[Case, ...],
) -> float:
    """Over all cases, outputs and gradients: largest error over largest expected magnitude."""
    errors = []
    for seed, case in enumerate(cases):
        tensors = _inputs(case, head_dim, dtype, torch.device("cpu"), seed)
        wanted = _outputs(dense_attention, [x.float() for x in tensors], case.window)
        given = _outputs(attend, [x.to(device) for x in tensors], case.window)
        for expected, result in zip(wanted, given, strict=True):
            difference = (result.float().cpu() - expected).abs().max()
            errors.append(difference / expected.abs().max())
    return torch.stack(errors).max().item()


def _inputs(
    case: Case, head_dim: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> list[torch.Tensor]:
    """Queries, keys and values as the model makes them, and a gradient of the output.

    Rounded to `dtype`, so that all who are given them compute with the same numbers.
    """
    generator = torch.Generator(device).manual_seed(seed)
    heads = (case.heads, case.groups, case.groups, case.heads)
    q, k, v, grad = (
        torch.randn(case.batch, case.length, n, head_dim, generator=generator, device=device)
        for n in heads
    )
    return [x.to(dtype) for x in (norm(q) * QK_SCALE, norm(k) * QK_SCALE, v, grad)]


def _outputs(attend: Backend, tensors: list[torch.Tensor], window: int) -> list[torch.Tensor]:
    """The output, and the gradients of queries, keys and values."""
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
        y_BTHD = attend(q, k, v, window=window)
        return [y_BTHD.detach(), *torch.autograd.grad(y_BTHD, (q, k, v), tensors[3])]


def dense_attention(
    q_BTHD: torch.Tensor, k_BTGD: torch.Tensor, v_BTGD: torch.Tensor, *, window: int
) -> torch.Tensor:
    """What all backends must equal: SDPA with the whole mask, on the CPU, where no kernel hides."""
    steps_T = torch.arange(q_BTHD.size(1), device=q_BTHD.device)
    distance_TT = steps_T[:, None] - steps_T
    mask_TT = (distance_TT >= 0) & (distance_TT <= window)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGD))
    k, v = repeat_heads(k, q.size(1)), repeat_heads(v, q.size(1))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TT).transpose(1, 2)


def layer_milliseconds(
    attend: Backend, device: torch.device, dtype: torch.dtype, head_dim: int
) -> float:
    """Time of a forward and backward of a full and a windowed layer, at a training-like shape."""
    milliseconds = 0.0
    for case in GPU_LAYERS if device.type == "cuda" else CPU_LAYERS:
        tensors = _inputs(case, head_dim, dtype, device)
        run = functools.partial(_outputs, attend, tensors, case.window)
        milliseconds += best_milliseconds(run, device)
    return milliseconds


def best_milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """The best of a few rounds: whoever else uses the machine only ever makes it slower."""
    for _ in range(SETTLING_RUNS):
        run()
    runs = TIMED_RUNS if device.type == "cuda" else 1
    rounds = []
    for _ in range(ROUNDS):
        _wait(device)
        start = time.perf_counter()
        for _ in range(runs):
            run()
        _wait(device)
        rounds.append(1e3 * (time.perf_counter() - start) / runs)
    return min(rounds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
