"""Generation: tool calls, stopping, streaming, batches of any lengths."""

import pytest
import torch

from nanochat_core.errors import ConfigError
from nanochat_core.inference import InferenceEngine
from nanochat_core.inference.passes import READ_AHEAD_BYTES
from nanochat_core.inference.row_cache import FIRST_CAPACITY
from nanochat_core.inference.settings import GREEDY, SamplingSettings
from nanochat_core.tokenizer.tokenizer import Tokenizer
from tests.inference.scripted import bigram_model, byte_tokenizer, chain
from tests.model.builders import random_model, random_tokens, small_config

TOKENIZER = byte_tokenizer()


def scripted_engine(*steps: str | int, **changes) -> InferenceEngine:
    successors = chain(TOKENIZER, *steps)
    return InferenceEngine(bigram_model(TOKENIZER, successors, **changes), TOKENIZER)


def random_engine(**changes) -> InferenceEngine:
    config = small_config(vocab_size=TOKENIZER.vocab_size, n_layer=2, **changes)
    return InferenceEngine(random_model(config), TOKENIZER)


def greedy_by_full_forward(engine: InferenceEngine, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            token = int(engine.model(torch.tensor([ids]))[0, -1].argmax())
        if token in engine.stop_tokens:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_a_prompt_is_continued_until_the_assistant_ends() -> None:
    engine = scripted_engine("?", "y", "e", "s", "assistant_end", "z")
    assert engine.generate("really?", max_new_tokens=50, temperature=0) == "yes"


def test_max_new_tokens_ends_a_reply() -> None:
    engine = scripted_engine("?", "a", "b", "c", "d", "e")
    assert engine.generate("?", max_new_tokens=3, temperature=0.0) == "abc"


def test_a_tool_call_puts_the_result_into_the_sequence() -> None:
    engine = scripted_engine(
        "?", "s", "python_start", "6", "*", "7", "python_end", "x", "assistant_end"
    )
    # The calculator's answer ends with output_end, from which the model goes on.
    model = engine.model
    with torch.no_grad():
        end, bang = TOKENIZER.special_id("output_end"), TOKENIZER.encode("!")[0]
        model.lm_head.weight[:, end] = 0
        model.lm_head.weight[bang, end] = 10.0
    ids = list(engine.generate_ids(TOKENIZER.encode("?"), GREEDY, max_new_tokens=50))
    assert TOKENIZER.decode(ids) == (
        "s<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>!"
    )
    # Tool output is not counted: s, python_start, 6 * 7, python_end, ! are the seven sampled.
    again = list(engine.generate_ids(TOKENIZER.encode("?"), GREEDY, max_new_tokens=7))
    assert again == ids
    assert engine.generate("?", max_new_tokens=50, temperature=0) == "s!"


def test_what_the_calculator_refuses_gets_no_output() -> None:
    engine = scripted_engine("?", "python_start", "6", "/", "0", "python_end", "x", "bos")
    ids = list(engine.generate_ids(TOKENIZER.encode("?"), GREEDY, max_new_tokens=50))
    assert TOKENIZER.decode(ids) == "<|python_start|>6/0<|python_end|>x"


def test_a_streamed_character_is_never_split() -> None:
    snowman = list("☃".encode())
    engine = scripted_engine("?", "a", *snowman, "b", "assistant_end")
    pieces = list(engine.stream(TOKENIZER.encode("?"), GREEDY, max_new_tokens=50))
    assert [piece.text for piece in pieces] == ["a", "☃", "b"]
    cut = list(engine.stream(TOKENIZER.encode("?"), GREEDY, max_new_tokens=3))
    assert "".join(piece.text for piece in cut) == "a\ufffd"


def test_greedy_tokens_are_those_of_the_full_forward_pass() -> None:
    engine = random_engine()
    prompt = random_tokens(engine.model.config, 1, 20)[0].tolist()
    count = FIRST_CAPACITY + 20
    ids = list(engine.generate_ids(prompt, GREEDY, max_new_tokens=count))
    assert len(ids) == count, "the cache was meant to grow"
    assert ids == greedy_by_full_forward(engine, prompt, count)


@pytest.mark.parametrize("settings", [GREEDY, SamplingSettings(0.8, top_k=30, seed=4)])
def test_a_batch_gives_each_prompt_what_it_gets_alone(settings: SamplingSettings) -> None:
    engine = random_engine()
    prompts = [
        random_tokens(engine.model.config, 1, n, seed=n)[0].tolist() for n in (7, 1, 19, 7, 3)
    ]
    together = engine.generate_batch(prompts, settings, max_new_tokens=25)
    for i, prompt in enumerate(prompts):
        own = SamplingSettings(
            settings.temperature, settings.top_k, settings.top_p, settings.seed + i
        )
        assert together[i] == list(engine.generate_ids(prompt, own, max_new_tokens=25))
    assert engine.generate_batch([], settings, max_new_tokens=5) == []


def test_prompts_that_are_given_several_times_get_what_they_get_alone() -> None:
    engine = random_engine()
    prompts = [random_tokens(engine.model.config, 1, n, seed=n)[0].tolist() for n in (7, 3)]
    seeds = [5, 6, 5, 8]
    asked = [prompts[0], prompts[1], prompts[0], prompts[0]]
    settings = SamplingSettings(0.9, top_k=40)
    replies = engine.generate_batch(asked, settings, max_new_tokens=15, seeds=seeds)
    for prompt, seed, reply in zip(asked, seeds, replies, strict=True):
        own = SamplingSettings(0.9, top_k=40, seed=seed)
        assert reply == list(engine.generate_ids(prompt, own, max_new_tokens=15))
    assert replies[0] == replies[2] != replies[3]


def test_a_reply_says_which_tokens_the_model_sampled() -> None:
    engine = scripted_engine("?", "s", "python_start", "6", "*", "7", "python_end", "x", "bos")
    asked = [TOKENIZER.encode("?"), TOKENIZER.encode("s?")]
    for reply in engine.generate_replies(asked, GREEDY, max_new_tokens=7):
        assert TOKENIZER.decode(reply.tokens) == (
            "s<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>"
        )
        assert reply.is_sampled == [True] * 6 + [False] * 4


def test_a_stop_request_ends_every_reply_of_a_batch() -> None:
    engine = scripted_engine("a", "b", "c", "d", "e", "f", "assistant_end")
    answers = iter([False, True])
    replies = engine.generate_replies(
        [TOKENIZER.encode(text) for text in ("a", "b", "f")],
        GREEDY,
        max_new_tokens=9,
        stop_requested=lambda: next(answers),
    )
    assert [TOKENIZER.decode(reply.tokens) for reply in replies] == ["bc", "cd", ""]


def test_a_batch_goes_on_when_some_rows_have_ended() -> None:
    engine = scripted_engine("a", "b", "c", "d", "e", "f", "assistant_end")
    prompts = [TOKENIZER.encode(text) for text in ("e", "xa", "d", "b")]
    replies = engine.generate_batch(prompts, GREEDY, max_new_tokens=4)
    assert [TOKENIZER.decode(reply) for reply in replies] == ["f", "bcde", "ef", "cdef"]


def test_the_seed_decides_what_is_sampled() -> None:
    engine = random_engine()
    settings = {"max_new_tokens": 20, "temperature": 1.0, "top_p": 0.9}
    first = engine.generate("hello", seed=1, **settings)
    assert first == engine.generate("hello", seed=1, **settings)
    assert any(engine.generate("hello", seed=s, **settings) != first for s in (2, 3, 4))


def test_generation_ends_where_positions_end() -> None:
    engine = scripted_engine("a", "b", "a", sequence_len=4)
    ids = list(engine.generate_ids(TOKENIZER.encode("a"), GREEDY, max_new_tokens=1000))
    assert len(ids) == engine.model.max_positions - 1


def test_a_prompt_without_room_is_refused() -> None:
    engine = scripted_engine("a", "b", sequence_len=4)
    with pytest.raises(ConfigError, match="shorten"):
        engine.generate("x" * 40, max_new_tokens=5)
    with pytest.raises(ConfigError, match="0 tokens"):
        list(engine.generate_ids([], GREEDY, max_new_tokens=5))
    with pytest.raises(ConfigError, match="max_new_tokens"):
        engine.generate("x", max_new_tokens=0)


def test_an_engine_without_a_tokenizer_is_refused() -> None:
    model = bigram_model(TOKENIZER, {})
    with pytest.raises(ConfigError, match="tokenizer"):
        InferenceEngine(model)
    model.tokenizer = TOKENIZER
    assert isinstance(InferenceEngine(model).tokenizer, Tokenizer)


def test_rows_beyond_the_processors_cache_get_what_they_get_alone() -> None:
    model = random_model(small_config(n_embd=128, n_head=1, n_kv_head=1, sequence_len=128))
    engine = InferenceEngine(model, byte_tokenizer())
    prompts = random_tokens(model.config, 24, 96).tolist()
    num_bytes = len(prompts) * 97 * model.config.head_dim * 4
    assert num_bytes > READ_AHEAD_BYTES
    together = engine.generate_batch(prompts, GREEDY, max_new_tokens=6)
    alone = [engine.generate_batch([prompt], GREEDY, max_new_tokens=6)[0] for prompt in prompts]
    assert together == alone
