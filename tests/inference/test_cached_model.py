"""The pass over a cache gives the logits of the full forward pass, whatever is cached how."""

from collections.abc import Iterator

import pytest
import torch

from nanochat_core.inference.cached_model import CachedModel
from nanochat_core.inference.passes import DecodePass, PrefillPass
from nanochat_core.inference.row_cache import RowCache
from nanochat_core.model.gpt import GPT
from nanochat_core.model.loss import soft_cap
from tests.model.builders import random_model, random_tokens, small_config

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
GROUPED = {"n_layer": 4, "n_head": 4, "n_kv_head": 2}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def ids(model: GPT, length: int, seed: int = 5) -> list[int]:
    return random_tokens(model.config, 1, length, seed=seed)[0].tolist()


def expected(model: GPT, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens]))[0, -1]


def read(cached: CachedModel, cache: RowCache, prompts: list[list[int]], row: int = 0):
    nothing = [cached.nothing] * len(prompts)
    step = PrefillPass(cache, prompts, nothing, first_row=row, start=0, bands=cached.bands)
    return soft_cap(cached.forward(step))


def decode(cached: CachedModel, cache: RowCache, rows: list[list[int]], first_row: int = 0):
    """The last token of each row, when those before are cached."""
    last, before = [row[-1] for row in rows], [row[-2] for row in rows]
    positions = [len(row) - 1 for row in rows]
    step = DecodePass(cache, last, before, positions, first_row=first_row)
    return soft_cap(cached.forward(step))


@pytest.mark.parametrize("changes", [{"n_layer": 1}, GROUPED], ids=["d1", "d4, grouped heads"])
def test_a_prompt_in_chunks_then_tokens_one_by_one(changes: dict[str, int]) -> None:
    model = random_model(small_config(**changes))
    cached, tokens = CachedModel(model), ids(model, 190)
    cache = RowCache(model.config, torch.float32, capacity=200)
    for start, stop in ((0, 100), (100, 101), (101, 180)):
        before = [tokens[start - 1] if start else cached.nothing]
        step = PrefillPass(
            cache, [tokens[start:stop]], before, first_row=0, start=start, bands=cached.bands
        )
        logits = soft_cap(cached.forward(step))
        torch.testing.assert_close(logits[0], expected(model, tokens[:stop]), **CLOSE)
    for stop in range(181, 190):
        logits = decode(cached, cache, [tokens[:stop]])
        torch.testing.assert_close(logits[0], expected(model, tokens[:stop]), **CLOSE)


def test_rows_of_different_lengths_do_not_touch_each_other() -> None:
    model = random_model(small_config(**GROUPED))
    cached = CachedModel(model)
    rows = [ids(model, n, seed=n) for n in (150, 3, 40)]
    cache = RowCache(model.config, torch.float32, capacity=160)
    logits = read(cached, cache, rows)
    for i in range(5):
        for row, tokens in enumerate(rows):
            torch.testing.assert_close(logits[row], expected(model, tokens), **CLOSE)
        rows = [[*tokens, (7 * i + row) % 60] for row, tokens in enumerate(rows)]
        logits = decode(cached, cache, rows)


def test_rows_in_the_middle_can_go_on_alone() -> None:
    model = random_model(small_config(**GROUPED))
    cached = CachedModel(model)
    rows = [ids(model, n, seed=n) for n in (30, 20, 10)]
    cache = RowCache(model.config, torch.float32)
    read(cached, cache, rows)
    rows[1].append(3)
    logits = decode(cached, cache, rows[1:2], first_row=1)
    torch.testing.assert_close(logits[0], expected(model, rows[1]), **CLOSE)
    rows = [[*rows[0], 4], [*rows[1], 5], [*rows[2], 6]]
    for row, logits_V in enumerate(decode(cached, cache, rows)):
        torch.testing.assert_close(logits_V, expected(model, rows[row]), **CLOSE)


def test_copied_swapped_and_grown_rows_hold_what_they_held() -> None:
    model = random_model(small_config(**GROUPED))
    cached = CachedModel(model)
    long, short = ids(model, 60, seed=1), ids(model, 25, seed=2)
    cache = RowCache(model.config, torch.float32, num_rows=2, capacity=64)
    read(cached, cache, [long, short])
    cache.swap(0, 1, 60)
    cache.grow(5, 70)
    cache.copy(1, 4, 40)
    assert (cache.num_rows, cache.capacity, cache.generation) == (5, 70, 1)
    rows = [[*short, 9], [*long, 8]]
    for row, logits_V in enumerate(decode(cached, cache, rows)):
        torch.testing.assert_close(logits_V, expected(model, rows[row]), **CLOSE)
    part = [*long[:40], 1]
    logits = decode(cached, cache, [part], first_row=4)
    torch.testing.assert_close(logits[0], expected(model, part), **CLOSE)
    cache.shrink(1)
    again = [*rows[0], 2]
    torch.testing.assert_close(decode(cached, cache, [again])[0], expected(model, again), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_close_and_weights_are_cast_once(dtype: torch.dtype) -> None:
    model = random_model(small_config(n_layer=3), dtype=dtype)
    cached, tokens = CachedModel(model), ids(model, 40)
    cache = RowCache(model.config, dtype)
    logits = read(cached, cache, [tokens])
    torch.testing.assert_close(logits[0], expected(model, tokens), rtol=0.05, atol=0.25)
    assert {weights.fc.dtype for weights in cached._weights.blocks} == {dtype}


def test_weights_that_changed_are_taken_over_by_a_refresh() -> None:
    model = random_model(small_config())
    cached, tokens = CachedModel(model), ids(model, 20)
    for parameter in model.parameters():
        parameter.copy_(1.1 * parameter)
    cached.refresh()
    logits = read(cached, RowCache(model.config, torch.float32), [tokens])
    torch.testing.assert_close(logits[0], expected(model, tokens), **CLOSE)
