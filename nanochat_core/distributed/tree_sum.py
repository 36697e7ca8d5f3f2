"""Sums of gradients over ranks in an order that does not depend on the number of ranks.

Floating-point addition is not associative. Micro-batches are numbered over all ranks, rank r owning
a contiguous block, and are added as the leaves of one binary tree: adjacent pairs, then pairs of
pairs. A rank adds its own leaves (`optim.gradient_sum`); the functions here add the ranks'.
With powers of two the tree, and so every bit, is the same for 1 x 4, 2 x 2 and 4 x 1.
"""

from typing import Literal

from torch import Tensor

from nanochat_core.distributed import collectives
from nanochat_core.distributed.collectives import Pending
from nanochat_core.distributed.ranks import Ranks

Reduction = Literal["exact", "fast"]


def tree_sum(parts_W: Tensor) -> Tensor:
    """Sum over the first axis by adjacent pairs; the parts are overwritten."""
    parts = list(parts_W.unbind(0))
    while len(parts) > 1:
        pairs = zip(parts[0::2], parts[1::2], strict=False)
        unpaired = parts[-1:] if len(parts) % 2 else []
        parts = [left.add_(right) for left, right in pairs] + unpaired
    return parts[0]


def scatter_sum(whole_WN: Tensor, ranks: Ranks, reduction: Reduction) -> Pending:
    """Start summing (W*N, ...) over ranks; each rank gets its N rows.

    "exact" moves as many bytes as a ring reduce-scatter, and holds one more copy of the whole.
    """
    if reduction == "fast" or ranks.world_size == 1:
        return collectives.reduce_scatter(whole_WN, ranks)
    work = collectives.all_to_all(whole_WN, ranks)
    shape = (ranks.world_size, whole_WN.shape[0] // ranks.world_size, *whole_WN.shape[1:])
    return Pending(whole_WN, inputs=(whole_WN,), finish=lambda _: tree_sum(work.wait().view(shape)))


def replicated_sum(flat: Tensor, ranks: Ranks, reduction: Reduction) -> Pending:
    """Start summing a small 1-D tensor over ranks; every rank gets all of it."""
    if reduction == "fast" or ranks.world_size == 1:
        return collectives.all_reduce(flat, ranks)
    work = collectives.all_gather(flat[None], ranks)
    return Pending(flat, finish=lambda _: tree_sum(work.wait()))
