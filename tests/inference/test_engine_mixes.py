"""Whatever comes, waits, shares and goes: the engine says what the full forward pass says."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.requests import Request
from nanochat_core.inference.settings import SamplingSettings
from nanochat_core.model.gpt import GPT
from tests.inference.mixes import (
    TOKENIZER,
    WINDOW_MULTIPLE,
    Mix,
    MixRun,
    alone,
    random_mix,
    random_prompt,
    started,
)
from tests.inference.reference import Observed, Reference

NUM_MIXES = 200
QUICK_SEEDS = range(1000, 1010)
NUM_ALONE = 1


@pytest.fixture(autouse=True)
def small_and_single(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Windows that short prompts outgrow; one thread, which is quickest for models so small."""
    monkeypatch.setattr("nanochat_core.model.config.WINDOW_MULTIPLE", WINDOW_MULTIPLE)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", QUICK_SEEDS)
def test_a_mix_of_requests_gets_what_the_full_forward_pass_gives(seed: int) -> None:
    counts = checked(seed)
    assert counts["picks"] > 0
    assert counts["not as alone"] == 0


@pytest.mark.e2e
def test_two_hundred_mixes_get_what_the_full_forward_pass_gives() -> None:
    counts, failures = Counter[str](), list[str]()
    for seed in range(NUM_MIXES):
        try:
            counts += checked(seed)
        except AssertionError as error:
            failures.append(f"seed {seed}: {error}".splitlines()[0])
    assert not failures, "\n".join(failures)
    check_power(counts)


def test_samples_of_one_prompt_read_it_once() -> None:
    mix = random_mix(0)
    engine, prompt = _engine(mix, num_rows=4), random_prompt(random.Random(1), 60)
    for seed in range(4):
        engine.submit(Request(prompt, SamplingSettings(seed=seed), max_new_tokens=3))
    while engine.has_work:
        engine.step()
    assert engine.stats.num_prefix_tokens == 3 * (len(prompt) - 1)


def test_a_conversation_goes_on_from_what_was_read_and_said() -> None:
    mix = random_mix(0)
    engine, prompt = _engine(mix, num_rows=2), random_prompt(random.Random(1), 40)
    first = alone(engine, Request(prompt, max_new_tokens=20, ignores_stop_tokens=True))
    read_before = engine.stats.num_prefix_tokens
    following = Request((*first.ids, *random_prompt(random.Random(2), 9)), num_logprobs=3)
    Reference(mix.model(), TOKENIZER, engine.max_length).check(alone(engine, following))
    assert engine.stats.num_prefix_tokens - read_before >= len(first.ids) - 1


def test_a_cancelled_row_is_free_for_the_next_step() -> None:
    engine = _engine(random_mix(0), num_rows=1)
    ids = [engine.submit(Request(random_prompt(random.Random(i), 30))) for i in range(3)]
    engine.step()
    engine.cancel(ids[0])
    assert engine.stats.num_running == 0
    engine.cancel(ids[1])
    engine.cancel(ids[1])
    engine.cancel(12345)
    outputs = engine.step() + engine.step()
    assert engine.stats.num_running == 1
    assert {output.sequence_id for output in outputs} <= {ids[2]}


def test_after_a_change_of_weights_nothing_of_the_old_ones_is_left() -> None:
    mix = random_mix(0)
    model, request = mix.model(), Request(random_prompt(random.Random(1), 50), num_logprobs=5)
    engine = InferenceEngine(model, TOKENIZER, mix.settings)
    alone(engine, request)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    engine.refresh()
    Reference(model, TOKENIZER, mix.settings.max_length).check(alone(engine, request))


def _engine(mix: Mix, **changes: int) -> InferenceEngine:
    settings = mix.settings.model_copy(update={"cache_gigabytes": 1.0, **changes})
    return InferenceEngine(mix.model(), TOKENIZER, settings)


def check_power(counts: Counter[str]) -> None:
    """Everything that the mixes are for did happen, and near ties hardly ever."""
    assert counts["near ties"] < counts["picks"] / 200, counts
    assert counts["other side of a near tie"] < counts["picks"] / 5000, counts
    assert counts["not as alone"] <= counts["alone"] / 100, counts
    wanted = {
        "picks": 7_000,
        "log-probabilities": 5_000,
        "alone": 120,
        "alone, bit for bit": 50,
        "tool tokens": 100,
        "stop tokens": 120,
        "stop texts": 60,
        "cancelled while waiting": 40,
        "cancelled while running": 40,
        "tokens of shared prefixes": 1_000,
    }
    missing = {name: counts[name] for name, least in wanted.items() if counts[name] < least}
    assert not missing, f"too few to tell: {missing}"


def checked(seed: int) -> Counter[str]:
    """Run a mix and judge all of it; what there was to judge."""
    mix = random_mix(seed)
    run = started(mix)
    run.run()
    check_nothing_is_left(run)
    model = mix.model()
    reference = Reference(model, TOKENIZER, mix.settings.max_length)
    for seen in run.seen.values():
        reference.check(seen)
    reference.counts["cancelled while waiting"] += run.num_cancelled_waiting
    reference.counts["cancelled while running"] += run.num_cancelled_running
    reference.counts["tokens of shared prefixes"] += run.engine.stats.num_prefix_tokens
    return reference.counts + compared_with_alone(mix, model, list(run.seen.values()))


def check_nothing_is_left(run: MixRun) -> None:
    """Everything asked was answered once, or cancelled; every row is free again."""
    for seen in run.seen.values():
        assert (seen.finish_reason is None) == seen.is_cancelled
    stats = run.engine.stats
    assert stats.num_prompt_tokens == sum(len(s.request.prompt) for s in run.seen.values())
    assert stats.num_sampled_tokens >= sum(sum(s.is_sampled) for s in run.seen.values())
    assert (stats.num_running, stats.num_waiting, stats.num_cached_tokens) == (0, 0, 0)
    assert not run.engine.has_work
    assert run.engine.step() == []


def compared_with_alone(mix: Mix, model: GPT, everything: list[Observed]) -> Counter[str]:
    """Some replies again, each from an engine of its own; bits are equal where that is promised."""
    counts = Counter[str]()
    is_exact = mix.settings.is_exact
    whole = [seen for seen in everything if not seen.is_cancelled]
    chosen = whole if is_exact else [s for s in whole if not s.request.settings.is_greedy]
    for seen in chosen if is_exact else chosen[-NUM_ALONE:]:
        again = alone(InferenceEngine(model, TOKENIZER, mix.settings), seen.request)
        counts["alone, bit for bit" if is_exact else "alone"] += 1
        if is_exact:
            assert (again.tokens, again.logprobs) == (seen.tokens, seen.logprobs), "other bits"
        counts["not as alone"] += again.tokens != seen.tokens
    return counts
