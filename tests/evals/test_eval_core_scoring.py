"""Scores off trees against whole rows of the model, whatever its shape."""

from typing import Any

import numpy as np
import pytest
import torch

from nanochat_core.bench.core_padded import padded_scores
from nanochat_core.errors import TrainingError
from nanochat_core.evals.bundle import TaskType
from nanochat_core.evals.core_prompts import Prompt
from nanochat_core.evals.core_scoring import Asker
from nanochat_core.model.gpt import GPT
from tests.model.builders import random_model, small_config

SHAPES: list[dict[str, Any]] = [
    {"n_layer": 1},
    {"n_layer": 2, "n_kv_head": 1},
    {"n_layer": 3, "window_pattern": "SL"},
    {"n_layer": 5, "n_head": 4, "n_kv_head": 2},
]


def make_items(seed: int) -> list[list[Prompt]]:
    """Tails longer than a window, forks everywhere, options of one token, spans of all lengths."""
    rng = np.random.default_rng(seed)
    story = rng.integers(0, 70, 400)
    items = []
    for length in (1, 3, 40, 200, 200, 380, 400):
        options = []
        for size in rng.choice([1, 1, 2, 9, 190], rng.integers(1, 5)):
            new = rng.integers(0, 70, size)
            tokens = np.concatenate([story[:length], new]).astype(np.int32)
            start = int(rng.integers(max(1, length - 2), len(tokens) + 1))
            options.append(Prompt(tokens, start, len(tokens)))
        items.append(options)
    return items


def likeliest_ends(model: GPT, items: list[list[Prompt]]) -> list[list[Prompt]]:
    """The same contexts, each followed by what the model says, or almost: some are right."""
    found = []
    for number, options in enumerate(items):
        tokens = options[0].tokens
        for _ in range(2):
            with torch.no_grad():
                logits = model(torch.from_numpy(tokens.astype(np.int64))[None])[0, -1]
            tokens = np.append(tokens, np.int32(logits.argmax().item()))
        if number % 3 == 0:
            tokens[-1] = (tokens[-1] + 1) % 70
        found.append([Prompt(tokens, len(tokens) - 2, len(tokens))])
    return found


@pytest.mark.parametrize("batch_tokens", [1, 1000, 1 << 20])
@pytest.mark.parametrize("changes", SHAPES)
def test_scores_are_those_of_whole_rows(changes: dict[str, Any], batch_tokens: int) -> None:
    model = random_model(small_config(sequence_len=60, **changes))
    items = make_items(7)
    kinds: list[tuple[TaskType, list[list[Prompt]]]] = [
        ("multiple_choice", items),
        ("language_modeling", likeliest_ends(model, items)),
    ]
    for kind, asked in kinds:
        found = Asker(model).scores(asked, kind, batch_tokens=batch_tokens)
        for options, scores in zip(asked, found, strict=True):
            assert scores == pytest.approx(padded_scores(model, options, kind), rel=1e-5)
        if kind == "language_modeling":
            assert {score for (score,) in found} == {0.0, 1.0}


def test_bfloat16_gives_the_same_but_for_rounding() -> None:
    model = random_model(small_config(sequence_len=60), dtype=torch.bfloat16)
    items = make_items(3)
    for options, scores in zip(
        items, Asker(model).scores(items, "multiple_choice", batch_tokens=1000), strict=True
    ):
        assert scores == pytest.approx(padded_scores(model, options, "multiple_choice"), abs=0.1)


def test_equal_options_tie_exactly() -> None:
    """The first of two that read the same must win, whatever rounding would say."""
    model = random_model(small_config())
    (one, other) = (np.array([*range(20), *end], dtype=np.int32) for end in ([5, 6, 7], [8, 9]))
    options = [Prompt(tokens, 20, len(tokens)) for tokens in (other, one, other, one)]
    (scores,) = Asker(model).scores([options], "multiple_choice", batch_tokens=1)
    assert scores[0] == scores[2]
    assert scores[1] == scores[3]
    assert scores[0] != scores[1]


def test_every_prompt_that_can_be_scored_is_settled_once() -> None:
    model, items, settled = random_model(small_config()), make_items(1), list[int]()
    Asker(model).scores(items, "schema", batch_tokens=500, on_done=settled.append)
    scored = [prompt for options in items for prompt in options if prompt.is_scored]
    assert sum(settled) == len(scored)
    assert Asker(model).scores([], "schema", batch_tokens=1) == []


@pytest.mark.parametrize("kind", ["multiple_choice", "language_modeling"])
def test_a_model_that_gives_nan_is_not_taken_for_one_that_is_wrong(kind: TaskType) -> None:
    model = random_model(small_config(sequence_len=60))
    items = make_items(7) if kind == "multiple_choice" else likeliest_ends(model, make_items(7))
    with torch.no_grad():
        model.lm_head.weight[33] = torch.nan
    with pytest.raises(TrainingError, match="the model gives NaN on an evaluation prompt"):
        Asker(model).scores(items, kind, batch_tokens=1000)
