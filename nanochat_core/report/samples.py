"""Which samples a report shows: some of each sort, the same ones every time."""

from typing import Any

from nanochat_core.report.material import Material
from nanochat_core.report.scores import Answer, points_of


def pick_samples(material: Material, number: int) -> list[dict[str, Any]]:
    """The first completions: half of them greedy, half sampled, where there are both."""
    whole = [s for s in material.samples() if "prompt" in s and "completion" in s]
    greedy = [sample for sample in whole if not sample.get("temperature")]
    sampled = [sample for sample in whole if sample.get("temperature")]
    half = number - min(number // 2, len(sampled))
    chosen = greedy[:half]
    return [*chosen, *sampled[: number - len(chosen)]]


def pick_answers(material: Material, station: str, number: int) -> list[Answer]:
    """Up to `number` right replies and as many wrong ones, of as many benchmarks as there are."""
    answers = material.answers(station)
    right = [answer for answer in answers if (points_of(answer) or 0.0) > 0.5]
    wrong = [answer for answer in answers if (points_of(answer) or 0.0) <= 0.5]
    return [*_mixed(right, number), *_mixed(wrong, number)]


def _mixed(answers: list[Answer], number: int) -> list[Answer]:
    """The first answer of every kind, then the second of every kind, and so on."""
    by_kind: dict[Any, list[Answer]] = {}
    for answer in answers:
        by_kind.setdefault(answer.get("kind", answer.get("benchmark")), []).append(answer)
    longest = max((len(members) for members in by_kind.values()), default=0)
    rounds = [m[i] for i in range(longest) for m in by_kind.values() if i < len(m)]
    return rounds[:number]
