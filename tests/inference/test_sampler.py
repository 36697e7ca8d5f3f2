"""Sampling: which tokens can be drawn, and how often."""

import pytest
import torch

from nanochat_core.errors import ConfigError
from nanochat_core.inference.sampler import Sampler, candidates, pick_each
from nanochat_core.inference.settings import SamplingSettings

LOGITS = torch.tensor([0.1, 0.5, 0.05, 0.35]).log()


def shares(settings: SamplingSettings, draws: int = 2000) -> list[float]:
    sampler = Sampler(settings)
    counts = torch.zeros(len(LOGITS))
    for _ in range(draws):
        counts[sampler.pick(LOGITS)] += 1
    return (counts / draws).tolist()


def test_tokens_are_drawn_by_their_probability() -> None:
    assert shares(SamplingSettings()) == pytest.approx([0.1, 0.5, 0.05, 0.35], abs=0.04)


def test_temperature_sharpens() -> None:
    squares = [p * p for p in (0.1, 0.5, 0.05, 0.35)]
    expected = [s / sum(squares) for s in squares]
    assert shares(SamplingSettings(temperature=0.5)) == pytest.approx(expected, abs=0.04)


def test_top_k_keeps_the_most_likely() -> None:
    expected = [0.0, 0.5 / 0.85, 0.0, 0.35 / 0.85]
    assert shares(SamplingSettings(top_k=2)) == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, {1}), (0.49, {1}), (0.51, {1, 3}), (0.9, {1, 3, 0}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: set[int]) -> None:
    probabilities, tokens = candidates(LOGITS[None], [SamplingSettings(top_p=top_p)])
    assert set(tokens[probabilities > 0].tolist()) == kept


def test_greedy_takes_the_most_likely_and_a_tiny_temperature_too() -> None:
    assert Sampler(SamplingSettings(temperature=0.0)).pick(LOGITS) == 1
    assert Sampler(SamplingSettings(temperature=1e-30)).pick(LOGITS) == 1


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SamplingSettings(**wrong)


def test_a_batch_picks_what_each_sampler_picks_alone() -> None:
    settings = [
        SamplingSettings(),
        SamplingSettings(top_k=5, seed=1),
        SamplingSettings(temperature=0.0),
        SamplingSettings(top_k=5, seed=2),
        SamplingSettings(temperature=0.7, top_p=0.9, seed=3),
        SamplingSettings(temperature=0.7, top_p=0.9, top_k=20, seed=4),
    ]
    generator = torch.Generator().manual_seed(0)
    together, alone = ([Sampler(each) for each in settings] for _ in range(2))
    for _ in range(20):
        logits = 3 * torch.randn(len(settings), 50, generator=generator)
        expected = [sampler.pick(row) for sampler, row in zip(alone, logits, strict=True)]
        assert pick_each(logits, together) == expected
