"""FlexAttention (arXiv:2412.05496): PyTorch compiles a kernel for the mask that it is given.

Shapes: B batch, T positions, H query heads, G key heads, D head dim, N blocks of positions.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from nanochat_core.model.attention import Backend
from nanochat_core.model.backends.hardware import UnavailableError
from nanochat_core.model.backends.sdpa import attend_sdpa

BLOCK = 128
"""Positions of one block, the size that FlexAttention's kernels are tuned for."""
MAX_SHAPES = 64
"""Shapes that may be compiled outside of a region before PyTorch gives up and runs it unfused."""
TABLES = (
    *("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"),
    *("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices"),
)
"""What a mask consists of: how many blocks, and which; those seen in part, those seen whole."""


def open_flex(device: torch.device) -> Backend:
    """Attention by FlexAttention; UnavailableError on a device where it has no backward."""
    if device.type != "cuda":
        probe = torch.zeros(1, 1, 1, 16, device=device, requires_grad=True)
        try:
            flex_attention(probe, probe, probe)
        except NotImplementedError as error:
            raise UnavailableError(str(error)) from error
    return attend_flex


def attend_flex(
    q_BTHD: torch.Tensor, k_BTGD: torch.Tensor, v_BTGD: torch.Tensor, *, window: int
) -> torch.Tensor:
    """As in `Backend`, by a kernel for exactly this shape.

    Passes without gradients go to SDPA: evaluations come in many lengths, and each one would be
    compiled.
    """
    if not torch.is_grad_enabled():
        return attend_sdpa(q_BTHD, k_BTGD, v_BTGD, window=window)
    length, device = q_BTHD.size(1), q_BTHD.device
    is_traced = torch.compiler.is_compiling()
    # A table that is filled while a graph is traced would hold tensors of the tracer; there, the
    # few small integers of a mask are worked out inside of the graph.
    mask = block_mask(window, length, device) if is_traced else _kept_mask(window, length, device)
    run: Any = flex_attention if is_traced else _compiled()
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGD))
    y_BHTD: torch.Tensor = run(q, k, v, block_mask=mask, enable_gqa=q.size(1) != k.size(1))
    return y_BHTD.transpose(1, 2)


@functools.cache
def _compiled() -> Callable[..., Any]:
    has_limit = "recompile_limit" in inspect.signature(torch.compile).parameters  # torch >= 2.13
    options: dict[str, Any] = {"recompile_limit": MAX_SHAPES} if has_limit else {}
    return torch.compile(flex_attention, dynamic=False, **options)


@functools.cache
def _kept_mask(window: int, length: int, device: torch.device) -> BlockMask:
    with torch.inference_mode(mode=False):
        return block_mask(window, length, device)


def block_mask(window: int, length: int, device: torch.device) -> BlockMask:
    """Which blocks of keys a block of queries sees in part or whole, from block numbers alone.

    `create_block_mask` looks at all T x T pairs. Here a block sees itself in part, whole those up
    to `num_whole` before it, and in part again those up to `num_seen` before it. As there, a last
    block of queries that is not full sees nothing whole.
    """
    num_blocks = -(-length // BLOCK)
    num_seen = -(-window // BLOCK)
    num_whole = max(0, (window + 1 - BLOCK) // BLOCK)
    block_N = torch.arange(num_blocks, device=device)
    full_queries = length // BLOCK
    at_N1, slot_1N = block_N[:, None], block_N[None]

    seen_N = block_N.clamp(max=num_seen)
    whole_N = block_N.clamp(max=num_whole) * (block_N < full_queries)
    far_N1 = (seen_N - whole_N)[:, None]
    keys = [
        far_N1[:, 0] + 1,
        torch.where(slot_1N < far_N1, at_N1 - seen_N[:, None] + slot_1N, at_N1),
        whole_N,
        at_N1 - whole_N[:, None] + slot_1N,
    ]
    # The same from a block of keys, which is seen by the blocks of queries after it.
    seen_N = (num_blocks - 1 - block_N).clamp(max=num_seen)
    whole_N = (full_queries - 1 - block_N).clamp(min=0, max=num_whole)
    queries = [
        seen_N - whole_N + 1,
        torch.where(slot_1N == 0, at_N1, at_N1 + whole_N[:, None] + slot_1N),
        whole_N,
        at_N1 + 1 + slot_1N,
    ]
    # Slots past the number of blocks are never read, but must name one.
    tables = [x.clamp(0, num_blocks).to(torch.int32)[None, None] for x in (*keys, *queries)]
    tables[1::2] = [indices.clamp(max=num_blocks - 1) for indices in tables[1::2]]
    named: dict[str, Any] = dict(zip(TABLES, tables, strict=True))
    size = (BLOCK, BLOCK)
    return BlockMask((length, length), **named, BLOCK_SIZE=size, mask_mod=_rule(window))


def _rule(window: int) -> Callable[..., torch.Tensor]:
    def sees(
        _batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (query >= key) & (query - key <= window)

    return sees
