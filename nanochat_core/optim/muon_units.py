"""Muon parameters sharded over ranks, matrix by matrix.

Letters: K matrices, W ranks.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from nanochat_core.distributed import collectives
from nanochat_core.distributed.collectives import Pending
from nanochat_core.distributed.tree_sum import scatter_sum
from nanochat_core.optim.groups import ParamGroup, StateShard
from nanochat_core.optim.muon import (
    MuonScalars,
    MuonSettings,
    second_moment_shape,
    shape_lr_factor,
)
from nanochat_core.optim.units import Context, StepNumbers, gradient_of, padded


class MatrixStack:
    """Equally shaped Muon matrices: each rank updates ceil(K/W) of them, the last ones fewer.

    "exact" updates matrix by matrix, so that every kernel sees one shape whatever the number of
    ranks; "fast" updates this rank's matrices as one stack.
    """

    is_replicated = False

    def __init__(
        self, group: ParamGroup, params: Sequence[tuple[str, Parameter]], context: Context
    ) -> None:
        self._group, self._params, self._context = group, params, context
        ranks = context.ranks
        self._part = math.ceil(len(params) / ranks.world_size)
        self._own = params[ranks.rank * self._part : (ranks.rank + 1) * self._part]
        first = params[0][1]
        self._rows, self._cols = first.shape
        self._moment_shape = second_moment_shape(self._rows, self._cols)
        zeros = torch.zeros(0, dtype=torch.float32, device=first.device)
        self._momentum = zeros.new_zeros((len(self._own), self._rows, self._cols))
        self._second_moment = zeros.new_zeros((len(self._own), *self._moment_shape))
        self._sum: Pending | None = None
        self._gathered: Pending | None = None

    def start_sum(self) -> None:
        """Start the sum of this rank's matrices; one rank has them already."""
        ranks = self._context.ranks
        if ranks.world_size == 1:
            return
        whole = torch.stack([gradient_of(name, param) for name, param in self._params])
        whole = padded(whole, self._part * ranks.world_size)
        self._sum = scatter_sum(whole, ranks, self._context.reduction)

    def update(self, numbers: StepNumbers) -> None:
        """Update this rank's matrices and start gathering all of them."""
        ranks = self._context.ranks
        weights = [param.detach() for _, param in self._own]
        grads = self._own_gradients()
        if weights:
            self._update_own(weights, grads, self._scalars(numbers))
        if ranks.world_size > 1:
            none_of_them = self._params[0][1].detach()[None][:0]
            own = torch.stack(weights) if weights else none_of_them
            self._gathered = collectives.all_gather(padded(own, self._part), ranks)

    def finish(self) -> None:
        """Copy the gathered matrices into the parameters."""
        if self._gathered is not None:
            matrices = self._gathered.wait()[: len(self._params)].unbind(0)
            torch._foreach_copy_([param.detach() for _, param in self._params], list(matrices))
            self._gathered = None

    def shards(self) -> Iterator[StateShard]:
        """This rank's matrices, each whole."""
        for index, (name, _) in enumerate(self._own):
            momentum, second = self._momentum[index], self._second_moment[index]
            yield StateShard(f"{name}.momentum", tuple(momentum.shape), 0, momentum)
            yield StateShard(f"{name}.second_moment", tuple(second.shape), 0, second)

    def full_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the state of every matrix."""
        for name, _ in self._params:
            yield f"{name}.momentum", (self._rows, self._cols)
            yield f"{name}.second_moment", self._moment_shape

    def _own_gradients(self) -> list[Tensor]:
        """The summed gradients of this rank's matrices."""
        if self._sum is None:
            return [gradient_of(name, param) for name, param in self._own]
        gradients = self._sum.wait()
        self._sum = None
        return list(gradients[: len(self._own)].unbind(0))

    def _update_own(self, weights: list[Tensor], grads: list[Tensor], scalars: MuonScalars) -> None:
        if self._context.reduction == "exact":
            for index, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
                self._run(weight[None], grad[None], slice(index, index + 1), scalars)
            return
        stack = torch.stack(weights)
        self._run(stack, torch.stack(grads), slice(None), scalars)
        torch._foreach_copy_(weights, list(stack.unbind(0)))

    def _run(self, weight: Tensor, grad: Tensor, part: slice, scalars: MuonScalars) -> None:
        context = self._context
        context.kernels.muon(
            weight,
            grad,
            self._momentum[part],
            self._second_moment[part],
            scalars=scalars,
            settings=MuonSettings(self._group.polar_express_steps, context.work_dtype),
        )

    def _scalars(self, numbers: StepNumbers) -> MuonScalars:
        group, scalar = self._group, self._context.kernels.scalar
        factor = shape_lr_factor(self._rows, self._cols)
        return MuonScalars(
            lr=numbers.gated(scalar(group.lr * numbers.lr_multiplier * factor)),
            weight_decay=scalar(group.weight_decay * numbers.weight_decay_multiplier),
            momentum=scalar(numbers.momentum),
            one_minus_beta2=numbers.gated(scalar(1.0 - group.beta2)),
            grad_scale=scalar(numbers.grad_scale),
            healthy=numbers.healthy,
        )
