"""AdamW against torch's, and its arithmetic for parameters that are not float32."""

import importlib

import pytest
import torch
from torch.nn import Parameter

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.optim.groups import ParamGroup
from nanochat_core.optim.muon_adamw import MuonAdamW

NUMBERS = {"lr": 0.01, "beta1": 0.8, "beta2": 0.96, "eps": 1e-10, "weight_decay": 0.1}


@pytest.fixture(scope="module", autouse=True)
def _loaded_compiler() -> None:
    """The first step of any torch.optim optimizer loads torch._dynamo, which takes seconds."""
    importlib.import_module("torch._dynamo")


def make(*params: tuple[str, Parameter]) -> MuonAdamW:
    group = ParamGroup("g", "adamw", params, **NUMBERS)
    return MuonAdamW([group], Ranks.single())


def step(optimizer: MuonAdamW, lr_multiplier: float = 1.0, grad_scale: float = 1.0) -> None:
    optimizer.step(
        lr_multiplier=lr_multiplier,
        momentum=0.9,
        weight_decay_multiplier=0.0,  # Muon's; AdamW's decay is constant
        grad_scale=grad_scale,
    )


@pytest.mark.parametrize("shape", [(40, 32), (7,), ()])
def test_it_moves_as_torch_does(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = Parameter(torch.randn(shape, generator=generator))
    theirs = Parameter(ours.detach().clone())
    optimizer = make(("w", ours))
    reference = torch.optim.AdamW([theirs], 0.01, (0.8, 0.96), 1e-10, weight_decay=0.1)
    for t in range(20):
        grad = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = grad * 4, grad.clone()
        reference.param_groups[0]["lr"] = 0.01 * (1 - t / 40)
        reference.step()
        step(optimizer, lr_multiplier=1 - t / 40, grad_scale=0.25)
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-7)
    assert optimizer.steps == 20


def test_bfloat16_weights_have_float32_moments_and_are_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = Parameter(torch.randn(64, 32, generator=generator).bfloat16())
    grad = torch.randn(64, 32, generator=generator).bfloat16()
    exact = Parameter(ours.detach().double())
    optimizer = make(("w", ours))
    reference = torch.optim.AdamW([exact], 0.01, (0.8, 0.96), 1e-10, weight_decay=0.1)
    ours.grad, exact.grad = grad, grad.double()
    step(optimizer)
    reference.step()
    assert {s.tensor.dtype for s in optimizer.state_shards()} == {torch.float32}
    assert ours.dtype is torch.bfloat16
    # float32 and float64 differ only where the result lies on the edge between two bfloat16.
    is_same = ours == exact.bfloat16()
    assert is_same.float().mean() > 0.99
    torch.testing.assert_close(ours.double(), exact.detach(), rtol=2**-8, atol=0)


def test_the_step_counter_can_be_set_for_a_warm_start() -> None:
    first, second = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    for param, steps in ((first, 0), (second, 1000)):
        optimizer = make(("w", param))
        optimizer.steps = steps
        param.grad = torch.ones(3)
        step(optimizer)
    # At step 1 the corrections undo the zero start; late they do nothing.
    assert first[0].item() == pytest.approx(1 - 0.001 - 0.01, rel=1e-5)
    assert second[0].item() == pytest.approx(1 - 0.001 - 0.01 * 0.2 / 0.2, rel=1e-5)
