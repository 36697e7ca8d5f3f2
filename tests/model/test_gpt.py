"""The model against a plain restatement, and what must hold for any weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nanochat_core.errors import ConfigError
from nanochat_core.model import loss as loss_module
from nanochat_core.model.attention import attend
from nanochat_core.model.backends.opening import OPENERS
from nanochat_core.model.backends.sdpa import attend_sdpa
from nanochat_core.model.gpt import GPT
from tests.model import plain_model
from tests.model.builders import random_model, random_tokens, small_config

SHAPES = {
    "d1": ({"n_layer": 1}, 20),
    "d2": ({"n_layer": 2}, 20),
    "d3, one head": ({"n_layer": 3, "n_head": 1, "n_kv_head": 1}, 20),
    "d4, grouped heads": ({"n_layer": 4, "n_head": 4, "n_kv_head": 2}, 20),
    "windows shorter than the input": ({"n_layer": 2, "n_head": 1, "n_kv_head": 1}, 150),
    "longer than sequence_len": ({"sequence_len": 20, "n_head": 1, "n_kv_head": 1}, 60),
    "whole vocabulary": ({"vocab_size": 64, "window_pattern": "L"}, 20),
}


def plain_logits(model: GPT, tokens: torch.Tensor) -> np.ndarray:
    config = model.config
    weights = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    rows = [
        plain_model.logits(
            weights,
            row.numpy(),
            layers=config.n_layer,
            heads=config.n_head,
            groups=config.n_kv_head,
            vocab=config.vocab_size,
            sequence_len=config.sequence_len,
            pattern=config.window_pattern,
        )
        for row in tokens
    ]
    return np.stack(rows)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_a_plain_float64_restatement(name: str) -> None:
    changes, length = SHAPES[name]
    config = small_config(**changes)
    model = random_model(config)
    tokens = random_tokens(config, 1 if length > 100 else 2, length)
    with torch.no_grad():
        logits = model(tokens)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.numpy(), plain_logits(model, tokens), rtol=1e-5, atol=1e-4)


def test_blocks_of_queries_equal_one_dense_mask() -> None:
    config = small_config(sequence_len=1200, n_layer=2, n_head=1, n_kv_head=1)
    assert config.windows == (384, 1200)
    model = random_model(config)
    block = model.blocks[0].attn
    length = 700
    q, k, v = (torch.randn(1, 1, length, 32) for _ in range(3))
    blocked = attend(q, k, v, window=block.window, band=model.band_384)
    steps = torch.arange(length)
    distance = steps[:, None] - steps
    mask = (distance >= 0) & (distance <= 384)
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(blocked, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_every_parameter_gets_a_gradient(layers: int) -> None:
    config = small_config(n_layer=layers, n_head=4, n_kv_head=2)
    model = random_model(config)
    tokens = random_tokens(config, 2, 17)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_the_loss_and_its_gradient_are_those_of_cross_entropy() -> None:
    config = small_config()
    model = random_model(config)
    tokens = random_tokens(config, 3, 13)
    targets = tokens[:, 1:].clone()
    targets[0, 4:] = -1
    logits = model(tokens[:, :-1])
    expected = {
        kind: F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=kind
        )
        for kind in ("sum", "mean", "none")
    }
    expected["none"] = expected["none"].view_as(targets)
    names = [n for n, _ in model.named_parameters()]
    for kind, loss in expected.items():
        ours = model(tokens[:, :-1], targets, reduction=kind)
        torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
        # A different weight for each token, so that "none" is checked token by token.
        weights = torch.linspace(1.0, 2.0, loss.numel()).view_as(loss)
        parameters = list(model.parameters())
        wanted = torch.autograd.grad((loss * weights).sum(), parameters, retain_graph=True)
        given = torch.autograd.grad((ours * weights).sum(), parameters)
        for name, a, b in zip(names, given, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=f"{kind}: {name}")


def test_a_loss_in_chunks_of_rows_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    model = random_model(config)
    tokens = random_tokens(config, 3, 13)
    results = []
    for elements in (2**26, 7 * config.vocab_size):
        monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", elements)
        model.zero_grad()
        value = model(tokens[:, :-1], tokens[:, 1:], reduction="sum")
        value.backward()
        results.append((value.detach(), model.lm_head.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1])


def loss_and_gradients(model, tokens: torch.Tensor) -> list[torch.Tensor]:  # noqa: ANN001
    value = model(tokens[:, :-1], tokens[:, 1:], reduction="sum")
    gradients = torch.autograd.grad(value, list(model.parameters()))
    return [tensor.cpu() for tensor in (value.detach(), *gradients)]


def test_a_model_attends_by_the_backend_that_it_is_told_where_nothing_is_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_config(n_layer=3)
    model = random_model(config)
    tokens = random_tokens(config, 2, 140)
    windows = []

    def counting(q, k, v, *, window: int) -> torch.Tensor:  # noqa: ANN001
        windows.append(window)
        return attend_sdpa(q, k, v, window=window)

    monkeypatch.setitem(OPENERS, "counting", lambda device: counting)
    with torch.no_grad():
        expected = model(tokens)
        model.use_attention("counting")
        assert torch.equal(model(tokens), expected)
        assert windows == [128, 128, 160]
        model.use_attention("sdpa")
        assert torch.equal(model(tokens), expected)
    assert len(windows) == config.n_layer


def test_a_backend_that_cannot_run_here_leaves_the_model_as_it_was() -> None:
    model = random_model(small_config(n_layer=1))
    for name in ("fa3", "tea leaves"):
        with pytest.raises(ConfigError, match=r"GPU|tea leaves"):
            model.use_attention(name)
    model(random_tokens(model.config, 1, 9))


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"sequence_len": 2048}], ids=["short", "blocks"])
def test_the_model_on_a_gpu_is_that_on_the_cpu(changes) -> None:  # noqa: ANN001
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = small_config(n_head=4, n_kv_head=2, n_embd=256, **changes)
    model = random_model(config)
    tokens = random_tokens(config, 1, config.sequence_len + 1)
    expected = loss_and_gradients(model, tokens)
    given = loss_and_gradients(model.to("cuda"), tokens.to("cuda"))
    torch.testing.assert_close(given, expected, rtol=1e-2, atol=1e-2)


def test_a_future_token_changes_no_earlier_logit() -> None:
    config = small_config(n_layer=3)
    model = random_model(config)
    tokens = random_tokens(config, 1, 30)
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 20:], after[:, 20:])


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = small_config()
    first, second, other = (GPT(config) for _ in range(3))
    torch.manual_seed(0)
    first.init_weights(3)
    torch.manual_seed(1)
    second.init_weights(3)
    other.init_weights(4)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.wte.weight, other.wte.weight)


def test_initial_weights_have_the_stated_spread() -> None:
    config = small_config(n_layer=3, n_embd=128, n_head=1, n_kv_head=1, vocab_size=512)
    model = GPT(config)
    model.init_weights(0)
    half_width = (3 / 128) ** 0.5
    block = model.blocks[0]
    assert block.attn.q.weight.abs().max() <= half_width
    assert block.attn.q.weight.std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert block.mlp.fc.weight.abs().max() <= 0.4 * half_width
    assert not block.attn.out.weight.any()
    assert not block.mlp.proj.weight.any()
    assert model.wte.weight.std().item() == pytest.approx(0.8, rel=0.02)
    assert model.lm_head.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert 0 <= model.smear_gate.weight.min() <= model.smear_gate.weight.max() <= 0.02
    torch.testing.assert_close(model.resid_lambdas.data, torch.tensor([1.15, 1.10, 1.05]))
    torch.testing.assert_close(model.x0_lambdas.data, torch.tensor([0.20, 0.125, 0.05]))
    assert model.smear_lambda.item() == 0
    assert model.backout_lambda.item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("compute", "table"),
    [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
)
def test_matrices_stay_float32_and_tables_follow_the_compute_dtype(
    compute: torch.dtype, table: torch.dtype
) -> None:
    config = small_config()
    model = random_model(config, dtype=compute)
    assert model.wte.weight.dtype == model.value_embeddings["1"].weight.dtype == table
    assert model.blocks[0].attn.q.weight.dtype == model.lm_head.weight.dtype == torch.float32
    tokens = random_tokens(config, 1, 10)
    exact = random_model(config)
    with torch.no_grad():
        low, full = model(tokens), exact(tokens)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, rtol=0.1, atol=0.35)


def test_an_input_beyond_the_rotary_tables_is_refused() -> None:
    model = random_model(small_config(sequence_len=4))
    model(torch.zeros(1, 40, dtype=torch.long))
    with pytest.raises(ConfigError, match="shorten"):
        model(torch.zeros(1, 41, dtype=torch.long))
