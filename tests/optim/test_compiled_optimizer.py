"""The compiled update functions, on the CPU and on a GPU, against the eager ones on the CPU."""

import pytest
import torch
from torch.nn import Parameter

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.optim.groups import ParamGroup
from nanochat_core.optim.muon_adamw import MuonAdamW

# torch's own compiler warns about torch's own code while it is loaded.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script_method.*:DeprecationWarning",
)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trained(device: str, *, compiled: bool, reduction: str = "exact") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def param(*shape: int) -> Parameter:
        return Parameter(torch.randn(shape, generator=generator).to(device))

    matrices = tuple((f"m{i}", param(32, 16 if i < 3 else 64)) for i in range(5))
    groups = [
        ParamGroup("large", "adamw", (("wte", param(64, 32)),), 0.01, weight_decay=0.1),
        ParamGroup("small", "adamw", (("scale", param(3)), ("one", param())), 0.01),
        ParamGroup("matrices", "muon", matrices, 0.02, beta2=0.9, weight_decay=0.1),
    ]
    optimizer = MuonAdamW(groups, Ranks.single(device), reduction=reduction, compile=compiled)  # type: ignore[arg-type]
    for t in range(4):
        for p in optimizer.params:
            p.grad = torch.randn(p.shape, generator=generator).to(device)
        optimizer.step(lr_multiplier=1 - t / 8, momentum=0.85 + t / 99, weight_decay_multiplier=0.5)
    return [p.detach().cpu() for p in optimizer.params]


@pytest.mark.parametrize(
    ("device", "compiled", "reduction"),
    [
        pytest.param("cpu", True, "exact", marks=pytest.mark.long),
        pytest.param("cpu", True, "fast", marks=pytest.mark.long),
        pytest.param("cuda", False, "exact", marks=[pytest.mark.gpu, GPU]),
        pytest.param("cuda", True, "exact", marks=[pytest.mark.gpu, GPU]),
        pytest.param("cuda", True, "fast", marks=[pytest.mark.gpu, GPU]),
    ],
)
def test_it_moves_weights_as_the_eager_one_on_the_cpu(
    device: str, compiled: bool, reduction: str
) -> None:
    expected = trained("cpu", compiled=False)
    moved = trained(device, compiled=compiled, reduction=reduction)
    for ours, eager in zip(moved, expected, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("device", "compiled"),
    [
        ("cpu", False),
        pytest.param("cpu", True, marks=pytest.mark.long),
        pytest.param("cuda", False, marks=[pytest.mark.gpu, GPU]),
        pytest.param("cuda", True, marks=[pytest.mark.gpu, GPU]),
    ],
)
@pytest.mark.parametrize("reduction", ["exact", "fast"])
def test_a_step_that_the_device_calls_unhealthy_changes_nothing(
    device: str, compiled: bool, reduction: str
) -> None:
    def param(*shape: int) -> Parameter:
        return Parameter(torch.randn(shape, device=device))

    groups = [
        ParamGroup("large", "adamw", (("wte", param(64, 32)),), 0.01),
        ParamGroup("small", "adamw", (("scale", param(3)),), 0.01),
        ParamGroup(
            *("matrices", "muon", (("m0", param(32, 16)), ("m1", param(32, 16))), 0.02),
            beta2=0.9,
            weight_decay=0.1,
        ),
    ]
    optimizer = MuonAdamW(groups, Ranks.single(device), reduction=reduction, compile=compiled)  # type: ignore[arg-type]

    def step(gradient: float, healthy: bool) -> list[torch.Tensor]:
        for p in optimizer.params:
            p.grad = gradient * torch.arange(p.numel(), device=device).view(p.shape)
        optimizer.step(
            lr_multiplier=1.0,
            momentum=0.9,
            weight_decay_multiplier=1.0,
            healthy=torch.tensor(healthy, device=device),
        )
        moments = [shard.tensor for shard in optimizer.state_shards()]
        return [tensor.detach().clone() for tensor in (*optimizer.params, *moments)]

    before = step(0.1, healthy=True)
    assert all(map(torch.equal, step(float("nan"), healthy=False), before))
    moved = step(0.1, healthy=True)
    assert not any(map(torch.equal, moved, before))
