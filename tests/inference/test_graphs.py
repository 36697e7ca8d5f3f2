"""The step that CUDA graphs record: fixed shapes, and nothing of one step is built into it.

A recording cannot be made without a GPU. What it needs is shown here in another way: the step is
traced once into a list of operations, which are then run again with other tokens and positions.
"""

from collections.abc import Iterator

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from nanochat_core.inference.cached_model import CachedModel
from nanochat_core.inference.engine import EngineSettings, InferenceEngine
from nanochat_core.inference.graphs import bucket, static_decode
from nanochat_core.inference.passes import DecodePass, PrefillPass
from nanochat_core.inference.requests import Request
from nanochat_core.inference.row_cache import RowCache
from nanochat_core.model.gpt import GPT
from tests.inference.scripted import byte_tokenizer
from tests.model.builders import random_model, random_tokens, small_config

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
LENGTHS = (150, 3, 40)
BUCKET, LENGTH, CAPACITY = 4, 256, 300


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def make_model() -> GPT:
    return random_model(small_config(n_layer=3, n_head=4, n_kv_head=2))


def filled(cached: CachedModel, rows: int = BUCKET) -> RowCache:
    """A cache with three prompts of different lengths in its first rows."""
    cache = RowCache(cached.config, torch.float32, num_rows=rows, capacity=CAPACITY)
    prompts = [random_tokens(cached.config, 1, n, seed=n)[0].tolist() for n in LENGTHS]
    step = PrefillPass(
        cache, prompts, [cached.nothing] * len(prompts), first_row=0, start=0, bands=cached.bands
    )
    cached.forward(step)
    return cache


def inputs(tokens: list[int], before: list[int], positions: list[int]) -> torch.Tensor:
    """The same, with one row more that only fills the batch."""
    return torch.tensor([[*tokens, 0], [*before, 0], [*positions, CAPACITY]])


def test_fixed_shapes_give_what_slices_give_and_touch_no_other_row() -> None:
    cached = CachedModel(make_model())
    cache, plain = filled(cached), filled(cached)
    untouched = cache.keys_LRGSD[:, 3, :, :CAPACITY].clone()
    for i in range(3):
        given = [5 + i, 6, 7], [1, 2, 3 + i], [n + i for n in LENGTHS]
        logits = static_decode(cached, inputs(*given), cache, LENGTH)
        expected = cached.forward(DecodePass(plain, *given))
        torch.testing.assert_close(logits[:3], expected, **CLOSE)
    torch.testing.assert_close(cache.keys_LRGSD[:, :3], plain.keys_LRGSD[:, :3], **CLOSE)
    assert torch.equal(cache.keys_LRGSD[:, 3, :, :CAPACITY], untouched)


def test_a_step_that_was_recorded_can_be_repeated_at_other_positions() -> None:
    cached = CachedModel(make_model())
    cache, plain = filled(cached), filled(cached)

    def step(inputs_3B: torch.Tensor) -> torch.Tensor:
        return static_decode(cached, inputs_3B, cache, LENGTH)

    first = [5, 6, 7], [1, 2, 3], list(LENGTHS)
    recorded = make_fx(step)(inputs(*first))
    cached.forward(DecodePass(plain, *first))
    for i in range(1, 4):
        given = [9 + i, 8, 7], [5, 6 + i, 7], [n + i for n in LENGTHS]
        logits = recorded(inputs(*given))
        expected = cached.forward(DecodePass(plain, *given))
        torch.testing.assert_close(logits[:3], expected, **CLOSE)


@pytest.mark.distributed  # by its time: it imports and runs the compiler
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # by torch itself
def test_the_compiled_step_gives_the_same() -> None:
    cached = CachedModel(make_model())
    cache, plain = filled(cached), filled(cached)
    given = [5, 6, 7], [1, 2, 3], list(LENGTHS)
    compiled = torch.compile(static_decode, fullgraph=True, dynamic=False)
    logits = compiled(cached, inputs(*given), cache, LENGTH)
    torch.testing.assert_close(logits[:3], cached.forward(DecodePass(plain, *given)), **CLOSE)


def test_sizes_are_rounded_up_to_powers_of_two() -> None:
    assert [bucket(n) for n in (1, 2, 3, 8, 9, 100)] == [1, 2, 4, 8, 16, 128]
    assert [bucket(n, 256) for n in (1, 256, 257)] == [256, 256, 512]


@pytest.mark.gpu
@pytest.mark.parametrize("is_compiled", [False, True])
def test_recorded_steps_give_the_replies_of_plain_ones(is_compiled: bool) -> None:
    tokenizer = byte_tokenizer()
    model = random_model(small_config(vocab_size=tokenizer.vocab_size, n_layer=3)).to("cuda")
    requests = [Request(tuple(range(40 + n)), max_new_tokens=30 + n) for n in range(5)]
    replies = []
    for use_graphs in (False, True):
        settings = EngineSettings(num_rows=3, use_graphs=use_graphs, is_compiled=is_compiled)
        engine = InferenceEngine(model, tokenizer, settings)
        replies.append({number: reply.tokens for number, reply in engine.replies(requests)})
    assert replies[0] == replies[1]
