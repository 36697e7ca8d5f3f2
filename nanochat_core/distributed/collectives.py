"""Collectives that are no-ops in a world of one, under the names of torch 2.11 to 2.13.

torch 2.13 deprecates `all_gather_into_tensor` and `reduce_scatter_tensor` (FutureWarning) for
`all_gather_single` and `reduce_scatter_single`, which 2.11 and 2.12 may not have.
Letters: W ranks, N rows of one rank.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_core.distributed.ranks import Ranks


class Pending:
    """A collective under way; `wait` returns its result once, and repeats it afterwards.

    Inputs are held until then, because the backend still reads them.
    """

    def __init__(
        self,
        result: Tensor,
        work: Any = None,
        *,
        inputs: tuple[Tensor, ...] = (),
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._result = result
        self._work = work
        self._inputs = inputs
        self._finish = finish

    def wait(self) -> Tensor:
        """The result; on CUDA ready for the current stream."""
        if self._work is not None:
            self._work.wait()
        if self._finish is not None:
            self._result = self._finish(self._result)
        self._work, self._finish, self._inputs = None, None, ()
        return self._result


def all_gather(part_N: Tensor, ranks: Ranks, *, out: Tensor | None = None) -> Pending:
    """Parts (N, ...) of all ranks as (W*N, ...) in rank order, written into `out` if given."""
    if ranks.world_size == 1:
        return Pending(part_N if out is None else out.copy_(part_N))
    if out is None:
        out = part_N.new_empty((ranks.world_size * part_N.shape[0], *part_N.shape[1:]))
    gather = _either_name("all_gather_single", "all_gather_into_tensor")
    return Pending(out, gather(out, part_N.contiguous(), async_op=True), inputs=(part_N,))


def reduce_scatter(whole_WN: Tensor, ranks: Ranks) -> Pending:
    """This rank's (N, ...) rows of the sum over ranks of (W*N, ...), in any order of addition."""
    if ranks.world_size == 1:
        return Pending(whole_WN)
    num_rows = whole_WN.shape[0] // ranks.world_size
    out = whole_WN.new_empty((num_rows, *whole_WN.shape[1:]))
    scatter = _either_name("reduce_scatter_single", "reduce_scatter_tensor")
    return Pending(out, scatter(out, whole_WN, async_op=True), inputs=(whole_WN,))


def all_to_all(whole_WN: Tensor, ranks: Ranks) -> Pending:
    """Rows r*N..(r+1)*N of rank q go to rows q*N..(q+1)*N of rank r; shapes (W*N, ...)."""
    if ranks.world_size == 1:
        return Pending(whole_WN)
    out = torch.empty_like(whole_WN)
    work = dist.all_to_all_single(out, whole_WN, async_op=True)
    return Pending(out, work, inputs=(whole_WN,))


def all_reduce(
    tensor: Tensor, ranks: Ranks, *, operation: Literal["sum", "max"] = "sum"
) -> Pending:
    """Sum or maximum over ranks, in place; the order of addition is the backend's."""
    if ranks.world_size == 1:
        return Pending(tensor)
    operations = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
    return Pending(tensor, dist.all_reduce(tensor, op=operations[operation], async_op=True))


def broadcast(tensor: Tensor, ranks: Ranks, *, source: int = 0) -> Tensor:
    """The tensor of rank `source` on every rank, in place."""
    if ranks.world_size > 1:
        dist.broadcast(tensor, src=source)
    return tensor


def barrier(ranks: Ranks) -> None:
    """Wait until every rank is here."""
    all_reduce(torch.zeros(1, device=ranks.device), ranks).wait().item()


def agree_any(flag: bool, ranks: Ranks) -> bool:
    """Whether any rank raised the flag; the same answer on every rank."""
    if ranks.world_size == 1:
        return flag
    votes = torch.tensor([int(flag)], dtype=torch.int32, device=ranks.device)
    return bool(all_reduce(votes, ranks, operation="max").wait().item())


def sum_numbers(values: list[float], ranks: Ranks) -> list[float]:
    """Each number summed over ranks, in float64; the same bits on every rank."""
    if ranks.world_size == 1:
        return values
    mine = torch.tensor([values], dtype=torch.float64, device=ranks.device)
    return [float(x) for x in all_gather(mine, ranks).wait().sum(dim=0).tolist()]


def gather_texts(text: str, ranks: Ranks) -> list[str]:
    """The text of every rank, in rank order, on every rank; nothing is pickled."""
    if ranks.world_size == 1:
        return [text]
    data = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
    size = len(text.encode())
    sizes = all_gather(torch.tensor([size], device=ranks.device), ranks).wait().tolist()
    padded = torch.zeros((1, max(1, *sizes)), dtype=torch.uint8, device=ranks.device)
    padded[0, :size] = data[:size].to(ranks.device)
    rows = all_gather(padded, ranks).wait().cpu()
    return [bytes(row[:n].tolist()).decode() for row, n in zip(rows, sizes, strict=True)]


def _either_name(new: str, old: str) -> Callable[..., Any]:
    collective: Callable[..., Any] = getattr(dist, new if hasattr(dist, new) else old)
    return collective
