"""The optimizer of one rank: its state, what it refuses, and the sum of micro-batch gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.distributed.tree_sum import tree_sum
from nanochat_core.errors import CheckpointError, ConfigError, TrainingError
from nanochat_core.optim.gradient_sum import GradientSum
from nanochat_core.optim.groups import ParamGroup
from nanochat_core.optim.muon_adamw import MuonAdamW


def make_params() -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"wte": (40, 32), "scale": (), "q": (8, 8), "k": (8, 8), "fc": (16, 8), "out": (8, 16)}
    return {n: Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}


def make(params: dict[str, Parameter], reduction: str = "exact") -> MuonAdamW:
    adamw = ParamGroup("embedding", "adamw", (("wte", params["wte"]),), 0.01)
    small = ParamGroup("scalars", "adamw", (("scale", params["scale"]),), 0.01)
    names = ("q", "fc", "k", "out")
    muon = ParamGroup("matrices", "muon", tuple((n, params[n]) for n in names), 0.02, beta2=0.9)
    return MuonAdamW([adamw, small, muon], Ranks.single(), reduction=reduction)  # type: ignore[arg-type]


def train(optimizer: MuonAdamW, steps: range) -> None:
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        for param in optimizer.params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step(lr_multiplier=1.0, momentum=0.9, weight_decay_multiplier=1.0)
        optimizer.zero_grad()


def state_of(optimizer: MuonAdamW) -> dict[str, Tensor]:
    return {s.name: s.tensor.clone() for s in optimizer.state_shards()}


def test_the_shards_of_one_rank_are_the_whole_named_state() -> None:
    optimizer = make(make_params())
    shapes = {s.name: tuple(s.tensor.shape) for s in optimizer.state_shards()}
    assert shapes == optimizer.state_names_and_shapes()
    assert shapes == {
        "wte.exp_avg": (40, 32),
        "wte.exp_avg_sq": (40, 32),
        "scale.exp_avg": (1,),
        "scale.exp_avg_sq": (1,),
        "q.momentum": (8, 8),
        "q.second_moment": (8, 1),
        "k.momentum": (8, 8),
        "k.second_moment": (8, 1),
        "fc.momentum": (16, 8),
        "fc.second_moment": (16, 1),
        "out.momentum": (8, 16),
        "out.second_moment": (1, 16),
    }


def test_a_loaded_state_continues_as_if_nothing_had_happened() -> None:
    straight, stopped = make_params(), make_params()
    train(make(straight), range(6))
    first = make(stopped)
    train(first, range(3))
    state, resumed = state_of(first), make(stopped)
    resumed.load_state(lambda name, start, stop: state[name][start:stop])
    resumed.steps = first.steps
    train(resumed, range(3, 6))
    for name, param in straight.items():
        assert torch.equal(param, stopped[name]), name


def test_exact_and_fast_agree_on_one_rank() -> None:
    exact, fast = make_params(), make_params()
    train(make(exact), range(4))
    train(make(fast, "fast"), range(4))
    for name, param in exact.items():
        torch.testing.assert_close(param, fast[name], rtol=1e-4, atol=1e-5)


def test_a_state_of_another_dtype_or_shape_is_refused() -> None:
    optimizer = make(make_params())
    state = state_of(optimizer)
    with pytest.raises(CheckpointError, match=r"wte\.exp_avg.*bfloat16.*expected torch\.float32"):
        optimizer.load_state(lambda name, start, stop: state[name][start:stop].bfloat16())
    with pytest.raises(CheckpointError, match="another model"):
        optimizer.load_state(lambda name, start, stop: state[name][start : stop - 1])


def test_a_missing_gradient_is_named() -> None:
    optimizer = make(make_params())
    with pytest.raises(TrainingError, match="wte has no gradient"):
        optimizer.step(lr_multiplier=1.0, momentum=0.9, weight_decay_multiplier=1.0)


def test_bad_groups_are_refused() -> None:
    param = Parameter(torch.zeros(4))
    with pytest.raises(ConfigError, match=r"Muon takes matrices, bias has shape \(4,\)"):
        ParamGroup("m", "muon", (("bias", param),), 0.1)
    twice = [ParamGroup(n, "adamw", ((n, param),), 0.1) for n in ("a", "b")]
    with pytest.raises(ConfigError, match="listed twice"):
        MuonAdamW(twice, Ranks.single())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8])
def test_micro_batches_are_added_in_tree_order(count: int) -> None:
    """The sum over ranks adds the same leaves in the same tree, written independently of it."""
    generator = torch.Generator().manual_seed(count)
    leaves = torch.randn(count, 300, generator=generator)
    param = Parameter(torch.zeros(300))
    gradients = GradientSum([param])
    for leaf in leaves:
        param.grad = leaf.clone()
        gradients.add()
    gradients.total()
    assert param.grad is not None
    assert torch.equal(param.grad, tree_sum(leaves.clone()))
    torch.testing.assert_close(param.grad, leaves.sum(dim=0))


def test_one_micro_batch_is_not_copied() -> None:
    param = Parameter(torch.zeros(3))
    param.grad = torch.ones(3)
    address = param.grad.data_ptr()
    gradients = GradientSum([param])
    gradients.add()
    assert param.grad is None
    gradients.total()
    assert param.grad is not None
    assert param.grad.data_ptr() == address


def test_the_sum_starts_anew_after_a_total() -> None:
    param = Parameter(torch.zeros(2))
    gradients = GradientSum([param])
    for _ in range(2):
        param.grad = torch.ones(2)
        gradients.add()
        gradients.total()
    assert param.grad is not None
    assert param.grad.tolist() == [1.0, 1.0]


def test_summing_nothing_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no gradient to sum"):
        GradientSum([Parameter(torch.zeros(2))]).total()
    with pytest.raises(TrainingError, match="got no gradient"):
        GradientSum([Parameter(torch.zeros(2))]).add()
