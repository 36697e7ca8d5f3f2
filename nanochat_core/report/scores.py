"""Scores with their standard errors, and what changed between two evaluations."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_core.report.numbers import is_number

IDENTITY = "identity"
IDENTITY_KINDS = ("name", "depth", "parameters")
"""Kinds of questions of which `identity` is the score over all."""
OVERALL = ("chatcore_metric", "demo_score")
"""Means over benchmarks, centered so that guessing is 0; a base model's is over other tasks."""
NOISE = 2.0
"""A difference of at most this many standard errors is called noise; one in twenty is larger."""

_PARTS = ("/stderr", "/right", "/asked", "/baseline")

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """A share or a mean, with its standard error and how many problems it is over, if known."""

    value: float
    stderr: float | None = None
    asked: int | None = None

    def text(self, decimals: int = 3) -> str:
        """`0.710 ± 0.032`."""
        shown = f"{self.value:.{decimals}f}"
        return shown if self.stderr is None else f"{shown} ± {self.stderr:.{decimals}f}"


@dataclass(frozen=True)
class Change:
    """What a score gained from one evaluation to another."""

    value: float
    stderr: float | None
    is_paired: bool

    @property
    def is_noise(self) -> bool:
        """Whether chance alone would do."""
        return self.stderr is not None and abs(self.value) <= NOISE * self.stderr

    def text(self, decimals: int = 3) -> str:
        """`+0.240 ± 0.061`."""
        shown = f"{self.value:+.{decimals}f}"
        return shown if self.stderr is None else f"{shown} ± {self.stderr:.{decimals}f}"


def read_scores(values: Mapping[str, Any]) -> dict[str, Score]:
    """Scores by name, from flat numbers: NAME with NAME/stderr, NAME/right, NAME/asked.

    Without a given standard error, that of a share: sqrt(p(1-p)/n). A name with a slash that is
    no part of another score, as `val/bpb`, is a score too.
    """
    numbers = {name: float(value) for name, value in values.items() if is_number(value)}
    return {
        name: _score(name, value, numbers)
        for name, value in numbers.items()
        if name.rpartition("/")[0] not in numbers and not name.endswith(_PARTS)
    }


def _score(name: str, value: float, numbers: Mapping[str, float]) -> Score:
    asked = numbers.get(f"{name}/asked")
    stderr = numbers.get(f"{name}/stderr")
    if stderr is None and asked and 0 <= value <= 1:
        stderr = math.sqrt(value * (1 - value) / asked)
    return Score(value, stderr, None if asked is None else int(asked))


def change(before: Score, after: Score, pairs: Sequence[tuple[float, float]] = ()) -> Change:
    """The difference of two scores, from its problems one by one where they are the same.

    Problems that both models got right or wrong say nothing about the difference; pairing leaves
    them out (the standard error of a mean of paired differences). Else the two are independent.
    """
    value = after.value - before.value
    if len(pairs) > 1:
        gains = [then - now for now, then in pairs]
        mean = sum(gains) / len(gains)
        variance = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
        return Change(value, math.sqrt(variance / len(gains)), is_paired=True)
    if before.stderr is None or after.stderr is None:
        return Change(value, None, is_paired=False)
    return Change(value, math.hypot(before.stderr, after.stderr), is_paired=False)


def pair(name: str, before: Iterable[Answer], after: Iterable[Answer]) -> list[tuple[float, float]]:
    """How each problem of a benchmark went, before and after; empty unless they are the same."""
    first, second = ([a for a in answers if is_of(a, name)] for answers in (before, after))
    if [question(a) for a in first] != [question(a) for a in second]:
        return []
    points = [(points_of(a), points_of(b)) for a, b in zip(first, second, strict=True)]
    return [(a, b) for a, b in points if a is not None and b is not None]


def is_of(answer: Answer, name: str) -> bool:
    """Whether an entry of answers.json belongs to a benchmark, or to one kind of its questions."""
    kind = answer.get("kind")
    is_part = name == IDENTITY and kind in IDENTITY_KINDS
    return is_part or name in (answer.get("benchmark"), kind)


def question(answer: Answer) -> str:
    """What was asked."""
    return str(answer.get("question", answer.get("prompt", "")))


def reply(answer: Answer) -> str:
    """What the model said."""
    return str(answer.get("answer", answer.get("reply", answer.get("completion", ""))))


def expected(answer: Answer) -> str:
    """What would have been right, as far as that is recorded."""
    accept = answer.get("accept")
    return (
        str(accept[0]) if isinstance(accept, list) and accept else str(answer.get("reference", ""))
    )


def points_of(answer: Answer) -> float | None:
    """1 for a right reply, 0 for a wrong one; None where that is not recorded."""
    for name in ("right", "score", "reward"):
        value = answer.get(name)
        if isinstance(value, bool | int | float):
            return float(value)
    return None
