"""Attention backends: right ones pass their trial, wrong ones do not, and none stops a run."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from nanochat_core.errors import ConfigError, UnknownNameError
from nanochat_core.model.attention import QUERY_BLOCK
from nanochat_core.model.backends import flex, trial
from nanochat_core.model.backends.hardware import (
    Hardware,
    UnavailableError,
    check_capability,
    hardware_of,
)
from nanochat_core.model.backends.opening import OPENERS, open_backend
from nanochat_core.model.backends.sdpa import attend_sdpa
from nanochat_core.model.backends.trial import try_attention, try_backend
from tests.model.builders import random_model, random_tokens, small_config

CPU = torch.device("cpu")
HEAD_DIM = 16
compiling = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated",  # given by torch itself, about itself
)


def dense(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
    return trial.dense_attention(q, k, v, window=window)


def gradients_not_of_keys(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
    return dense(q, k.detach() + 0 * k, v, window=window)


def other_heads(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
    """Takes query head h for key head h % G, which shows only where heads share keys."""
    groups = k.size(2)
    order = torch.arange(q.size(2)).view(groups, -1).T.flatten()
    return dense(q[:, :, order], k, v, window=window)[:, :, order.argsort()]


def late_start(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
    """Right for as long as one block of queries of SDPA, one key off after it."""
    first, second = dense(q, k, v, window=window), dense(q, k, v, window=window + 1)
    return torch.cat([first[:, :QUERY_BLOCK], second[:, QUERY_BLOCK:]], dim=1)


WRONG = {
    "one key too many": lambda q, k, v, *, window: dense(q, k, v, window=window + 1),
    "one key too few": lambda q, k, v, *, window: dense(q, k, v, window=window - 1),
    "no window": lambda q, k, v, *, window: dense(q, k, v, window=10**6),
    "sees the future": lambda q, k, v, *, window: dense(
        q.flip(1), k.flip(1), v.flip(1), window=window
    ).flip(1),
    "no gradient of keys": gradients_not_of_keys,
    "heads in another order": other_heads,
    "wrong after a block": late_start,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backend_is_refused_with_its_error(name: str) -> None:
    verdict = try_attention("wrong", WRONG[name], CPU, torch.bfloat16, HEAD_DIM)
    assert not verdict.passes
    assert verdict.error > 0.1
    assert verdict.milliseconds is None
    assert verdict.reason.startswith("wrong: off by")
    assert "allowed are 0.03" in verdict.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sdpa_passes_in_blocks_and_is_timed(dtype: torch.dtype) -> None:
    assert trial.TRIAL_LENGTH > QUERY_BLOCK
    verdict = try_backend("sdpa", CPU, dtype, HEAD_DIM)
    assert verdict.passes
    assert 0 < verdict.error < trial.TOLERANCES[dtype]
    assert verdict.milliseconds > 0
    assert " ms" in verdict.reason


def test_a_backend_that_rounds_like_half_of_the_digits_is_refused() -> None:
    def coarse(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
        return dense(q, k, v, window=window).bfloat16().float()

    assert not try_attention("coarse", coarse, CPU, torch.float32, HEAD_DIM).passes


def test_what_is_not_finite_is_refused() -> None:
    def empty(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
        return dense(q, k, v, window=window) / 0

    verdict = try_attention("empty", empty, CPU, torch.float32, HEAD_DIM)
    assert (verdict.passes, verdict.error) == (False, None)
    assert "not finite" in verdict.reason


def test_a_backend_that_fails_is_a_verdict_with_its_first_line() -> None:
    def broken(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
        raise RuntimeError("no kernel image\nsome hundred lines of C++")

    def hungry(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    first = try_attention("broken", broken, CPU, torch.float32, HEAD_DIM)
    assert (first.passes, first.reason) == (False, "RuntimeError: no kernel image")
    assert first.is_lasting
    second = try_attention("hungry", hungry, CPU, torch.float32, HEAD_DIM)
    assert "out of memory" in second.reason
    assert not second.is_lasting


def test_every_backend_says_why_it_cannot_train_on_a_cpu() -> None:
    reasons = {name: try_backend(name, CPU, torch.bfloat16, HEAD_DIM).reason for name in OPENERS}
    assert reasons["fa3"] == "needs an NVIDIA GPU of compute capability 9.0; this is a CPU"
    assert reasons["fa4"] == "needs an NVIDIA GPU of compute capability 9.0 or 10.0; this is a CPU"
    assert reasons["flex"].startswith("FlexAttention does not support backward on CPU")
    assert reasons["sdpa"].endswith(" ms")


def test_a_name_that_is_no_backend_lists_those_that_are() -> None:
    with pytest.raises(UnknownNameError, match=r"'fa2'; there are fa3, fa4, flex, sdpa"):
        open_backend("fa2", CPU)


@pytest.mark.parametrize(
    ("capability", "majors", "allowed"),
    [
        ((9, 0), (9,), True),
        ((10, 0), (9,), False),
        ((8, 0), (9, 10), False),
        ((10, 3), (9, 10), True),
        (None, (9, 10), False),
    ],
)
def test_a_gpu_of_another_generation_is_refused_by_name(
    capability: tuple[int, int] | None, majors: tuple[int, ...], allowed: bool
) -> None:
    hardware = Hardware("Some GPU", capability)
    if allowed:
        check_capability(hardware, majors)
        return
    with pytest.raises(UnavailableError, match="this is Some GPU") as caught:
        check_capability(hardware, majors)
    if capability is not None:
        assert "with {}.{}".format(*capability) in str(caught.value)


def test_devices_without_nvidia_numbers_have_no_capability() -> None:
    assert hardware_of(CPU) == Hardware("a CPU", None)
    assert hardware_of(torch.device("mps")) == Hardware("a device of type mps", None)


def test_an_amd_gpu_is_not_taken_for_an_nvidia_one_of_that_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    monkeypatch.setattr(torch.version, "hip", None)
    assert hardware_of(torch.device("cuda")) == Hardware("Some GPU", (9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert hardware_of(torch.device("cuda")) == Hardware("Some GPU", None)


def test_float32_on_a_gpu_is_held_to_the_digits_that_it_multiplies_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = torch.device("cuda")
    assert trial.tolerance(cuda, torch.float32) == 1e-4
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert trial.tolerance(cuda, torch.float32) == trial.tolerance(CPU, torch.float16)
    assert trial.tolerance(CPU, torch.float32) == 1e-4
    assert trial.tolerance(cuda, torch.bfloat16) == 3e-2


# --- FlexAttention


@pytest.mark.distributed  # by its time: PyTorch's own way imports the compiler
@pytest.mark.parametrize("length", [64, 256, 300, 640])
@pytest.mark.parametrize("window", [0, 1, 127, 128, 129, 200, 255, 256, 384, 2047])
def test_a_block_mask_by_numbers_is_that_of_looking_at_every_pair(length: int, window: int) -> None:
    given = flex.block_mask(window, length, CPU)
    wanted = create_block_mask(flex._rule(window), None, None, length, length, device="cpu")
    for side in ("kv", "full_kv", "q", "full_q"):
        counts, slots = (getattr(given, f"{side}_{part}") for part in ("num_blocks", "indices"))
        expected = getattr(wanted, f"{side}_num_blocks")
        assert torch.equal(counts, expected), side
        listed = getattr(wanted, f"{side}_indices")
        assert slots.shape == listed.shape
        assert slots.dtype == listed.dtype
        assert 0 <= slots.min() <= slots.max() < listed.shape[-1]
        for row, count in enumerate(counts.flatten()):
            assert set(slots[0, 0, row, :count].tolist()) == set(listed[0, 0, row, :count].tolist())


def test_passes_without_gradients_go_to_sdpa_whatever_their_length() -> None:
    q, k, v = (torch.randn(1, 70, heads, HEAD_DIM) for heads in (4, 2, 2))
    with torch.no_grad():
        given = flex.attend_flex(q, k, v, window=20)
    assert torch.equal(given, attend_sdpa(q, k, v, window=20))


@pytest.mark.long
@compiling
@pytest.mark.parametrize("window", [7, 200, 1000])
def test_flex_in_a_compiled_region_is_dense_attention(window: int) -> None:
    q, k, v = (torch.randn(1, 300, heads, 32) for heads in (4, 2, 2))

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex.attend_flex(q * 2, k, v, window=window) + 1

    # Nothing asks for a gradient, which it does not have on a CPU, but gradients are on.
    traced = torch.compile(layer, dynamic=False, fullgraph=True)
    given = traced(q, k, v)
    torch.testing.assert_close(given, dense(q * 2, k, v, window=window) + 1)


# --- SDPA as a backend, and in the model


@pytest.mark.parametrize("length", [70, 160, QUERY_BLOCK + 40])
def test_the_model_computes_the_same_bits_by_the_backend_as_without(length: int) -> None:
    config = small_config(sequence_len=300, n_head=4, n_kv_head=2, n_layer=2)
    model = random_model(config)
    tokens = random_tokens(config, 2, length + 1)

    def loss_and_gradients() -> list[Tensor]:
        loss = model(tokens[:, :-1], tokens[:, 1:])
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    wanted, names = loss_and_gradients(), list(model.state_dict())
    for block in model.blocks:
        block.attn.attend_fn = open_backend("sdpa", CPU)
    given = loss_and_gradients()
    assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))
    assert list(model.state_dict()) == names


def test_a_band_made_in_an_evaluation_serves_training() -> None:
    q, k, v = (torch.randn(1, 90, 2, HEAD_DIM, requires_grad=True) for _ in range(3))
    with torch.inference_mode():
        before = attend_sdpa(q, k, v, window=41)
    after = attend_sdpa(q, k, v, window=41)
    after.sum().backward()
    assert torch.equal(before, after)


@pytest.mark.distributed  # by its time: it imports and runs the compiler
@compiling
def test_sdpa_traces_into_one_graph_with_its_mask() -> None:
    q, k, v = (torch.randn(1, 90, n, HEAD_DIM, requires_grad=True) for n in (4, 2, 2))

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_sdpa(q * 2, k, v, window=20).square().sum()

    traced = torch.compile(layer, backend="aot_eager", dynamic=False, fullgraph=True)
    given, wanted = traced(q, k, v), layer(q, k, v)
    torch.testing.assert_close(given, wanted)
    grads = [torch.autograd.grad(value, (q, k, v)) for value in (given, wanted)]
    torch.testing.assert_close(*grads)


# --- on a GPU


def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.mark.gpu
@compiling
@pytest.mark.parametrize("name", OPENERS)
def test_what_can_run_on_this_gpu_passes_its_trial(name: str) -> None:
    verdict = try_backend(name, gpu(), torch.bfloat16)
    if verdict.error is None and not verdict.is_lasting:
        pytest.skip(verdict.reason)
    assert verdict.passes, verdict.reason


@pytest.mark.gpu
@compiling
@pytest.mark.parametrize("name", OPENERS)
def test_a_compiled_region_on_a_gpu_gives_what_the_backend_gives(name: str) -> None:
    device = gpu()
    try:
        attend = open_backend(name, device)
    except ConfigError as error:
        pytest.skip(str(error))

    def layer(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
        return attend(q, k, v, window=window)

    traced = torch.compile(layer, dynamic=False, fullgraph=True)
    error = trial.largest_error(traced, device, torch.bfloat16, trial.HEAD_DIM, trial.CASES)
    assert error < trial.TOLERANCES[torch.bfloat16]
