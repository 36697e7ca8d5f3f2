"""AdamW parameters sharded over ranks: small ones replicated, large ones cut by rows.

Letters: W ranks.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from nanochat_core.distributed import collectives
from nanochat_core.distributed.collectives import Pending
from nanochat_core.distributed.tree_sum import replicated_sum, scatter_sum
from nanochat_core.optim.adamw import AdamWScalars, Scalar, adamw_update
from nanochat_core.optim.groups import ParamGroup, StateShard
from nanochat_core.optim.units import Context, StepNumbers, gradient_of, padded


class SmallTensors:
    """Tensors too small to cut: summed in one message, updated alike on every rank."""

    is_replicated = True

    def __init__(
        self, params: Sequence[tuple[ParamGroup, str, Parameter]], context: Context
    ) -> None:
        self._params, self._context = params, context
        self._moments = [(_moment(param), _moment(param)) for _, _, param in params]
        self._pending: Pending | None = None

    def start_sum(self) -> None:
        """Start summing all gradients as one flat float32 tensor."""
        flat = [gradient_of(name, param).float().flatten() for _, name, param in self._params]
        context = self._context
        self._pending = replicated_sum(torch.cat(flat), context.ranks, context.reduction)

    def update(self, numbers: StepNumbers) -> None:
        """Update every tensor, eagerly: compiling would cost more than it saves."""
        assert self._pending is not None, "start_sum comes before update"
        sizes = [param.numel() for _, _, param in self._params]
        gradients = torch.split(self._pending.wait(), sizes)
        self._pending = None
        for (group, _, param), grad, (first, second) in zip(
            self._params, gradients, self._moments, strict=True
        ):
            weight = _at_least_1d(param.detach())
            scalars = adamw_scalars(group, numbers, float)
            adamw_update(weight, grad.view(weight.shape), first, second, scalars)

    def finish(self) -> None:
        """Nothing is under way."""

    def shards(self) -> Iterator[StateShard]:
        """The whole moments."""
        for (_, name, _), moments in zip(self._params, self._moments, strict=True):
            yield from _moment_shards(name, moments, tuple(moments[0].shape), 0)

    def full_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes; a 0-d parameter has moments of one entry."""
        for shard in self.shards():
            yield shard.name, shard.full_shape


class RowShards:
    """One AdamW tensor cut by rows: each rank updates ceil(rows/W) of them, the last ones fewer."""

    is_replicated = False

    def __init__(self, group: ParamGroup, name: str, param: Parameter, context: Context) -> None:
        self._group, self._name, self._param, self._context = group, name, param, context
        ranks = context.ranks
        self._rows = param.shape[0]
        self._part = math.ceil(self._rows / ranks.world_size)
        self._is_uneven = self._part * ranks.world_size != self._rows
        self._start = min(self._rows, ranks.rank * self._part)
        self._stop = min(self._rows, self._start + self._part)
        own = param.detach()[self._start : self._stop]
        self._moments = (_moment(own), _moment(own))
        self._sum: Pending | None = None
        self._gathered: Pending | None = None

    def start_sum(self) -> None:
        """Start the sum of this rank's rows."""
        grad = gradient_of(self._name, self._param).contiguous()
        whole = padded(grad, self._part * self._context.ranks.world_size)
        self._sum = scatter_sum(whole, self._context.ranks, self._context.reduction)

    def update(self, numbers: StepNumbers) -> None:
        """Update this rank's rows and start gathering all of them."""
        assert self._sum is not None, "start_sum comes before update"
        own = self._param.detach()[self._start : self._stop]
        grad = self._sum.wait()[: len(own)]
        self._sum = None
        if len(own):
            kernels = self._context.kernels
            scalars = adamw_scalars(self._group, numbers, kernels.scalar)
            kernels.adamw(own, grad, *self._moments, scalars)
        if self._context.ranks.world_size > 1:
            self._gathered = self._gather(own)

    def finish(self) -> None:
        """Put the rows of all ranks into the parameter."""
        if self._gathered is not None:
            gathered = self._gathered.wait()
            self._gathered = None
            if self._is_uneven:
                self._param.detach().copy_(gathered[: self._rows])

    def shards(self) -> Iterator[StateShard]:
        """This rank's rows of both moments."""
        if self._stop > self._start:
            full_shape = tuple(self._param.shape)
            yield from _moment_shards(self._name, self._moments, full_shape, self._start)

    def full_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and whole shapes of both moments."""
        for shard in _moment_shards(self._name, self._moments, tuple(self._param.shape), 0):
            yield shard.name, shard.full_shape

    def _gather(self, own: Tensor) -> Pending:
        """Rows that divide evenly are gathered in place, which saves a copy of the tensor."""
        ranks = self._context.ranks
        if self._is_uneven:
            return collectives.all_gather(padded(own, self._part), ranks)
        return collectives.all_gather(own, ranks, out=self._param.detach())


def adamw_scalars(
    group: ParamGroup, numbers: StepNumbers, scalar: Callable[[float], Scalar]
) -> AdamWScalars:
    """The numbers of one AdamW update."""
    return AdamWScalars(
        lr=numbers.gated(scalar(group.lr * numbers.lr_multiplier)),
        weight_decay=scalar(group.weight_decay),
        one_minus_beta1=scalar(1.0 - group.beta1),
        one_minus_beta2=numbers.gated(scalar(1.0 - group.beta2)),
        eps=scalar(group.eps),
        bias_correction1=scalar(1.0 - group.beta1**numbers.step),
        bias_correction2=scalar(1.0 - group.beta2**numbers.step),
        grad_scale=scalar(numbers.grad_scale),
        healthy=numbers.healthy,
    )


def _moment(like: Tensor) -> Tensor:
    return torch.zeros_like(_at_least_1d(like.detach()), dtype=torch.float32)


def _at_least_1d(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim else tensor[None]


def _moment_shards(
    name: str, moments: tuple[Tensor, Tensor], full_shape: tuple[int, ...], start: int
) -> Iterator[StateShard]:
    yield StateShard(f"{name}.exp_avg", full_shape, start, moments[0])
    yield StateShard(f"{name}.exp_avg_sq", full_shape, start, moments[1])
