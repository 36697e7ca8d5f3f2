"""Scores, their errors and what changed between two evaluations."""

import math
import random
import statistics

import pytest

from nanochat_core.report.plots import running_mean, spread
from nanochat_core.report.scores import Score, change, pair, read_scores


def test_scores_are_read_with_their_counts_and_errors() -> None:
    values = {
        "identity": 0.9,
        "identity/right": 27,
        "identity/asked": 30,
        "sums": 0.5,
        "sums/stderr": 0.07,
        "val/bpb": 1.45,
        "lost/asked": 3,
        "ok": True,
        "tasks": {},
    }
    assert read_scores(values) == {
        "identity": Score(0.9, pytest.approx(math.sqrt(0.9 * 0.1 / 30)), 30),
        "sums": Score(0.5, 0.07),
        "val/bpb": Score(1.45),
    }


def test_the_paired_error_is_that_of_the_differences() -> None:
    rng = random.Random(1)
    pairs = [(float(rng.random() < 0.4), float(rng.random() < 0.6)) for _ in range(200)]
    gains = [after - before for before, after in pairs]
    gain = change(Score(0.4, 0.03), Score(0.6, 0.03), pairs)
    assert gain.stderr == pytest.approx(statistics.stdev(gains) / math.sqrt(200))
    assert gain.is_paired


def test_without_pairs_the_errors_add_as_of_independent_evaluations() -> None:
    gain = change(Score(0.5, 0.03), Score(0.55, 0.04))
    assert (gain.stderr, gain.is_paired) == (pytest.approx(0.05), False)
    assert gain.is_noise
    assert not change(Score(0.5, 0.03), Score(0.9, 0.04)).is_noise
    assert change(Score(2.0), Score(1.5, 0.1)).text() == "-0.500"


def test_only_the_same_questions_make_pairs() -> None:
    def answers(*questions: str) -> list[dict[str, object]]:
        return [{"kind": "name", "question": q, "right": q == "a"} for q in questions]

    assert pair("identity", answers("a", "b"), answers("a", "b")) == [(1.0, 1.0), (0.0, 0.0)]
    assert pair("identity", answers("a", "b"), answers("b", "a")) == []
    assert pair("sums", answers("a"), answers("a")) == []


def test_a_running_mean_is_over_the_neighbours_that_there_are() -> None:
    assert running_mean([0.0, 3.0, 0.0, 3.0, 6.0], 1) == [1.5, 1.0, 2.0, 3.0, 4.5]
    assert running_mean([2.0] * 5, 3) == [2.0] * 5
    assert running_mean([4.0, 2.0], 0) == [4.0, 2.0]


def test_labels_are_moved_apart_as_little_as_needed() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert spread([0.97, 0.99, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert spread([0.0, 0.0, 0.05], 0.1) == pytest.approx([0.0, 0.1, 0.2])
