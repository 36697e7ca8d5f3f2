"""Decoding with a cache gives the logits of the full forward pass."""

import pytest
import torch

from nanochat_core.errors import ConfigError
from nanochat_core.model.gpt import GPT
from nanochat_core.model.kv_cache import KVCache
from tests.model.builders import random_model, random_tokens, small_config

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def cache_for(model: GPT, batch: int, capacity: int) -> KVCache:
    return KVCache(model.config, batch, capacity, model.compute_dtype)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    "changes",
    [{"n_layer": 1}, {"n_layer": 4, "n_head": 4, "n_kv_head": 2}],
    ids=["d1", "d4, grouped heads"],
)
def test_prefill_then_single_tokens_then_several(changes: dict[str, int]) -> None:
    config = small_config(**changes)
    model = random_model(config)
    tokens = random_tokens(config, 2, 190)
    expected = model(tokens)
    cache = cache_for(model, 2, 200)
    pieces = [tokens[:, :140], *(tokens[:, i : i + 1] for i in range(140, 150)), tokens[:, 150:]]
    logits = torch.cat([model.forward_cached(piece, cache) for piece in pieces], dim=1)
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert cache.lengths == [190, 190]


def test_rows_of_different_lengths_do_not_touch_each_other() -> None:
    config = small_config(n_layer=3, n_head=4, n_kv_head=2)
    model = random_model(config)
    lengths, new = [150, 3, 40], 6
    rows = [random_tokens(config, 1, n + new, seed=n) for n in lengths]
    expected = [model(row)[:, n - 1 :] for row, n in zip(rows, lengths, strict=True)]
    prompt = torch.zeros(3, 150, dtype=torch.long)
    for row, tokens in enumerate(rows):
        prompt[row, : lengths[row]] = tokens[0, : lengths[row]]
    cache = cache_for(model, 3, 160)
    steps = [model.forward_cached(prompt, cache, num_valid=lengths, last_only=True)]
    for i in range(new):
        column = torch.cat([r[:, n + i : n + i + 1] for r, n in zip(rows, lengths, strict=True)])
        steps.append(model.forward_cached(column, cache))
    logits = torch.cat(steps, dim=1)
    for row in range(3):
        torch.testing.assert_close(logits[row : row + 1], expected[row], **CLOSE)


def test_ragged_steps_leave_rows_without_tokens_alone() -> None:
    config = small_config()
    model = random_model(config)
    first, second = random_tokens(config, 1, 30, seed=1), random_tokens(config, 1, 30, seed=2)
    cache = cache_for(model, 2, 30)
    model.forward_cached(
        torch.cat([first[:, :10], second[:, :10]]), cache, num_valid=[10, 4], last_only=True
    )
    padded = torch.cat([first[:, 10:15], second[:, 4:9]])
    logits = model.forward_cached(padded, cache, num_valid=[0, 5])
    torch.testing.assert_close(logits[1:], model(second[:, :9])[:, 4:], **CLOSE)
    padded = torch.cat([first[:, 10:15], second[:, 9:14]])
    logits = model.forward_cached(padded, cache, num_valid=[5, 2], last_only=True)
    torch.testing.assert_close(logits[:1], model(first[:, :15])[:, -1:], **CLOSE)
    torch.testing.assert_close(logits[1:], model(second[:, :11])[:, -1:], **CLOSE)
    assert cache.lengths == [15, 11]


def test_a_row_can_be_used_again_for_a_new_sequence() -> None:
    config = small_config()
    model = random_model(config)
    cache = cache_for(model, 2, 20)
    model.forward_cached(random_tokens(config, 2, 12), cache)
    cache.reset(1)
    tokens = random_tokens(config, 2, 5, seed=9)
    logits = model.forward_cached(tokens, cache)
    torch.testing.assert_close(logits[1:], model(tokens[1:]), **CLOSE)


def test_outgrowing_the_cache_is_refused_before_anything_is_stored() -> None:
    config = small_config()
    model = random_model(config)
    cache = cache_for(model, 1, 8)
    model.forward_cached(random_tokens(config, 1, 6), cache)
    with pytest.raises(ConfigError, match="room for 8"):
        model.forward_cached(random_tokens(config, 1, 3), cache)
    assert cache.lengths == [6]
