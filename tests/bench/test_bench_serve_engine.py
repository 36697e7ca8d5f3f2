"""The load of the server on the bare engine."""

import time

import pytest

from nanochat_core.bench.serve_engine import engine_figures, request_of
from nanochat_core.bench.serve_load import Load, Prompts, Window
from nanochat_core.inference.engine import EngineSettings, InferenceEngine
from tests.inference.scripted import bigram_model, byte_tokenizer, chain

LOAD = Load(num_clients=3, prompts=Prompts(num_words=4), max_tokens=5, temperature=0.0)


def counting_engine() -> InferenceEngine:
    """Says 123, whatever it is asked."""
    tokenizer = byte_tokenizer()
    steps = ("assistant_start", "1", "2", "3", "assistant_end")
    model = bigram_model(tokenizer, chain(tokenizer, *steps))
    return InferenceEngine(model, tokenizer, EngineSettings(num_rows=2))


def test_each_client_of_the_engine_asks_its_own_requests_one_after_the_other() -> None:
    engine = counting_engine()
    window = Window(time.monotonic(), num_requests=8)
    found = engine_figures(engine, LOAD, window)
    seconds = time.monotonic() - window.begin
    assert found["engine_requests"] == 8
    # Three tokens each, in no more time than was measured from outside.
    assert found["engine_tokens_per_second"] >= 24 / seconds
    assert not engine.has_work


def test_when_the_time_is_over_the_engine_is_left_empty() -> None:
    engine = counting_engine()
    begin = time.monotonic()
    found = engine_figures(engine, LOAD, Window(begin, begin + 0.05, begin + 0.15))
    assert found["engine_tokens_per_second"] > 0
    assert not engine.has_work
    assert engine.stats.num_running == engine.stats.num_waiting == 0


def test_a_request_is_made_as_the_server_makes_it() -> None:
    tokenizer = byte_tokenizer()
    request = request_of(LOAD, 7, tokenizer)
    text = LOAD.body(7)["messages"][0]["content"]
    assert request.prompt == (
        tokenizer.bos_id,
        tokenizer.special_id("user_start"),
        *tokenizer.encode(text),
        tokenizer.special_id("user_end"),
        tokenizer.special_id("assistant_start"),
    )
    assert (request.settings.seed, request.settings.top_k) == (7, LOAD.top_k)
    assert request.max_reply_tokens == LOAD.body(7)["max_tokens"] == 5
    assert request.settings.temperature == pytest.approx(0.0)
