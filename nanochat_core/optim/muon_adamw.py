"""Muon for matrices, AdamW for the rest, with optimizer state sharded over ranks (ZeRO-2).

There is no DDP wrapper: the optimizer sums gradients over ranks itself. Small tensors are updated
alike everywhere, AdamW tensors by rows, Muon matrices one by one (RECIPE section 2).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.distributed.tree_sum import Reduction
from nanochat_core.errors import CheckpointError, ConfigError
from nanochat_core.optim.adamw_units import RowShards, SmallTensors
from nanochat_core.optim.groups import ParamGroup, StateShard
from nanochat_core.optim.kernels import make_kernels
from nanochat_core.optim.muon_units import MatrixStack
from nanochat_core.optim.units import Context, StepNumbers, Unit

SMALL_TENSOR_ELEMENTS = 1024
"""AdamW tensors with fewer elements are replicated: RECIPE section 2."""


class MuonAdamW:
    """The optimizer of a run; every schedule comes from outside, as numbers of each step.

    `steps` counts the steps taken and is all that is not a tensor in its state. `compute_dtype`
    bfloat16 lets Muon orthogonalise in bfloat16, anything else in float32. Gradients are *summed*
    over ranks: the caller divides losses by the number of micro-batches of all ranks.

    `reduction="exact"` adds gradients in the order of one binary tree over all micro-batches and
    updates matrix by matrix: the same bits for any powers of two of ranks and micro-batches.

    Raises:
        ConfigError: a parameter in two groups, or two parameters of one name.
    """

    def __init__(
        self,
        groups: Sequence[ParamGroup],
        ranks: Ranks,
        *,
        compute_dtype: torch.dtype = torch.float32,
        reduction: Reduction = "exact",
        compile: bool = False,
    ) -> None:
        self.groups = tuple(groups)
        self.steps = 0
        self._ranks = ranks
        _check_distinct(self.groups)
        is_bf16 = compute_dtype is torch.bfloat16
        self._context = Context(
            ranks=ranks,
            reduction=reduction,
            kernels=make_kernels(compiled=compile),
            work_dtype=torch.bfloat16 if is_bf16 else torch.float32,
        )
        self._units = _make_units(self.groups, self._context)

    @property
    def params(self) -> list[Parameter]:
        """Every parameter, in the order of the groups."""
        return [param for group in self.groups for _, param in group.params]

    @torch.no_grad()
    def step(
        self,
        *,
        lr_multiplier: float,
        momentum: float,
        weight_decay_multiplier: float,
        grad_scale: float = 1.0,
        healthy: Tensor | None = None,
    ) -> None:
        """Sum gradients over ranks and update every parameter on every rank.

        Gradients are multiplied by `grad_scale` (float16: one over the scale of the loss). Whether
        they are finite is the caller's question: all ranks call or skip together, or pass the same
        `healthy`, a 0-d bool on the device. False there leaves weights and moments as they are; the
        step is counted all the same, because the host cannot know.

        Raises:
            TrainingError: a parameter has no gradient.
        """
        numbers = StepNumbers(
            step=self.steps + 1,
            lr_multiplier=lr_multiplier,
            momentum=momentum,
            weight_decay_multiplier=weight_decay_multiplier,
            grad_scale=grad_scale,
            healthy=healthy,
        )
        for unit in self._units:
            unit.start_sum()
        for unit in self._units:
            unit.update(numbers)
        for unit in self._units:
            unit.finish()
        self.steps += 1

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for param in self.params:
            param.grad = None

    def state_shards(self) -> list[StateShard]:
        """This rank's part of the state, as views; the parts of all ranks make the whole once."""
        units = [u for u in self._units if self._ranks.is_main or not u.is_replicated]
        return [shard for unit in units for shard in unit.shards()]

    def state_names_and_shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole state of all ranks, un-padded; all of it is float32."""
        return {name: shape for unit in self._units for name, shape in unit.full_shapes()}

    @torch.no_grad()
    def load_state(self, read: Callable[[str, int, int], Tensor]) -> None:
        """Copy in what `read(name, start, stop)` gives: rows [start, stop) of the whole tensor.

        Works whatever number of ranks wrote the state. `steps` is set by the caller.

        Raises:
            CheckpointError: a tensor of another dtype or shape.
        """
        for unit in self._units:
            for shard in unit.shards():
                stop = shard.start + shard.tensor.shape[0]
                given = read(shard.name, shard.start, stop)
                _check_like(shard, stop, given)
                shard.tensor.copy_(given)


def _make_units(groups: Sequence[ParamGroup], context: Context) -> list[Unit]:
    units: list[Unit] = [unit for group in groups for unit in _large_units(group, context)]
    small = [
        (group, name, param)
        for group in groups
        for name, param in group.params
        if group.kind == "adamw" and param.numel() < SMALL_TENSOR_ELEMENTS
    ]
    # Small ones last: their message is short, and the large ones' sums are under way meanwhile.
    return [*units, SmallTensors(small, context)] if small else units


def _large_units(group: ParamGroup, context: Context) -> Iterator[Unit]:
    if group.kind == "adamw":
        for name, param in group.params:
            if param.numel() >= SMALL_TENSOR_ELEMENTS:
                yield RowShards(group, name, param, context)
        return
    by_shape: dict[tuple[int, ...], list[tuple[str, Parameter]]] = {}
    for name, param in group.params:
        by_shape.setdefault(tuple(param.shape), []).append((name, param))
    for params in by_shape.values():
        yield MatrixStack(group, params, context)


def _check_distinct(groups: Sequence[ParamGroup]) -> None:
    names: set[str] = set()
    identities: set[int] = set()
    for group in groups:
        for name, param in group.params:
            if name in names or id(param) in identities:
                raise ConfigError(
                    f"parameter {name} of group {group.name} is listed twice; every parameter "
                    "belongs to one group, under a name of its own"
                )
            names.add(name)
            identities.add(id(param))


def _check_like(shard: StateShard, stop: int, given: Tensor) -> None:
    if given.dtype != shard.tensor.dtype or given.shape != shard.tensor.shape:
        raise CheckpointError(
            f"optimizer state {shard.name}[{shard.start}:{stop}] is {given.dtype} "
            f"{tuple(given.shape)}, expected {shard.tensor.dtype} {tuple(shard.tensor.shape)}; "
            "the checkpoint belongs to another model"
        )
