"""Kernels that are called like those of FlashAttention 3 and 4, in plain float32 on a CPU.

They stand in for packages of others, which need a GPU: same arguments, same kinds of results.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

NO_LIMIT = -1


def probabilities(q: Tensor, k: Tensor, scale: float, before: int) -> tuple[Tensor, Tensor]:
    """(B, H, T, T) and their log sums (B, H, T); a query sees itself and `before` keys."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = torch.einsum("bthd,bshd->bhts", q.float(), k.float()) * scale
    steps = torch.arange(q.shape[1])
    distance = steps[:, None] - steps
    hidden = (distance < 0) if before == NO_LIMIT else (distance < 0) | (distance > before)
    scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1)


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, before: int) -> tuple[Tensor, Tensor]:
    p, lse = probabilities(q, k, scale, before)
    v = v.repeat_interleave(q.shape[2] // v.shape[2], dim=2)
    return torch.einsum("bhts,bshd->bthd", p, v.float()).to(q.dtype), lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    before: int,
) -> list[Tensor]:
    repeats = q.shape[2] // k.shape[2]
    p, expected_lse = probabilities(q, k, scale, before)
    assert torch.equal(lse, expected_lse)
    wide_k, wide_v = (x.float().repeat_interleave(repeats, dim=2) for x in (k, v))
    grad = grad.float()
    dp = torch.einsum("bthd,bshd->bhts", grad, wide_v)
    ds = p * (dp - torch.einsum("bthd,bthd->bht", grad, out.float())[..., None]) * scale
    dq = torch.einsum("bhts,bshd->bthd", ds, wide_k)
    dk = torch.einsum("bhts,bthd->bshd", ds, q.float())
    dv = torch.einsum("bhts,bthd->bshd", p, grad)
    narrow = [x.unflatten(2, (k.shape[2], repeats)).sum(3) for x in (dk, dv)]
    return [x.to(q.dtype) for x in (dq, *narrow)]


# As hopper/flash_api_stable.cpp of FlashAttention 3 declares its two operators.
OPTIONAL_TENSORS = ", ".join(
    f"Tensor? {name}=None"
    for name in (
        *("cu_seqlens_q", "cu_seqlens_k", "cu_seqlens_k_new", "seqused_q", "seqused_k"),
        *("max_seqlen_q", "max_seqlen_k"),
        *("page_table", "kv_batch_idx", "leftpad_k", "rotary_cos", "rotary_sin"),
        *("seqlens_rotary", "q_descale", "k_descale", "v_descale"),
    )
).replace("Tensor? max", "int? max")
FWD = (
    "fwd(Tensor q, Tensor k, Tensor v, Tensor(a!)? k_new=None, Tensor(b!)? v_new=None, "
    f"Tensor? q_v=None, Tensor(c!)? out=None, {OPTIONAL_TENSORS}, float? softmax_scale=None, "
    "bool is_causal=False, int window_size_left=-1, int window_size_right=-1, "
    "int attention_chunk=0, float softcap=0.0, bool is_rotary_interleaved=False, "
    "Tensor? scheduler_metadata=None, int num_splits=0, bool? pack_gqa=None, int sm_margin=0) "
    "-> (Tensor(c!), Tensor, Tensor, Tensor)"
)
BWD = (
    "bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, "
    "Tensor(a!)? dq=None, Tensor(b!)? dk=None, Tensor(c!)? dv=None, Tensor? cu_seqlens_q=None, "
    "Tensor? cu_seqlens_k=None, Tensor? seqused_q=None, Tensor? seqused_k=None, "
    "int? max_seqlen_q=None, int? max_seqlen_k=None, float? softmax_scale=None, "
    "bool is_causal=False, int window_size_left=-1, int window_size_right=-1, float softcap=0.0, "
    "bool deterministic=False, int sm_margin=0) "
    "-> (Tensor(a!), Tensor(b!), Tensor(c!), Tensor, Tensor)"
)


def _fa3_fwd(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
    nothing, (scale, is_causal, left, right, chunk, softcap, *rest) = others[:20], others[20:]
    assert set(nothing) == {None}
    assert (is_causal, right, chunk, softcap) == (True, 0, 0, 0.0)
    # What stands at the end and has its default, PyTorch leaves out.
    assert rest == [True, None, 1]
    return *forward(q, k, v, scale, left), torch.empty(0), torch.empty(0)


def _fa3_bwd(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, given, nothing, (scale, is_causal, left, right, *rest) = (
        *(arguments[:6], arguments[6:9], arguments[9:15]),
        arguments[15:],
    )
    assert set(nothing) == {None}
    assert (is_causal, right) == (True, 0)
    assert rest == ([0.0, True] if torch.are_deterministic_algorithms_enabled() else [])
    for tensor, grad in zip(given, backward(*tensors, scale, left), strict=True):
        tensor.copy_(grad)
    return *given, torch.empty(0), torch.empty(0)


@contextmanager
def fa3_operators(namespace: str = "flash_attn_3") -> Iterator[None]:
    """Registers `torch.ops.<namespace>.fwd` and `.bwd` for a while."""
    with torch.library._scoped_library(namespace, "FRAGMENT") as library:
        for schema, kernel in ((FWD, _fa3_fwd), (BWD, _fa3_bwd)):
            name = library.define(schema)
            library.impl(name, kernel, "CPU")
        yield


def _fa4_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size_left: int | None = None,
    return_lse: bool = False,
) -> tuple[Tensor | None, ...]:
    assert causal
    left = NO_LIMIT if window_size_left is None else window_size_left
    out, lse = forward(q, k, v, softmax_scale, left)
    return out, lse if return_lse else None, None, None, None


def _fa4_bwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    dout: Tensor,
    lse: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    *,
    window_size_left: int | None = None,
    deterministic: bool = False,
) -> tuple[Tensor, ...]:
    assert causal
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    left = NO_LIMIT if window_size_left is None else window_size_left
    return tuple(backward(dout, q, k, v, out, lse, softmax_scale, left))


FA4_INTERFACE = SimpleNamespace(_flash_attn_fwd=_fa4_fwd, _flash_attn_bwd=_fa4_bwd)
