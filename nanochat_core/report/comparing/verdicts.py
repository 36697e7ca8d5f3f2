"""Whether a gain over the first side is larger than the noise of repeats, in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nanochat_core.report.comparing.noise import (
    ALPHA,
    MAX_REPEATS,
    Difference,
    Sample,
    Spread,
    difference,
    holm,
    needed_repeats,
    pooled,
    quantile,
)
from nanochat_core.report.comparing.sides import Comparison, Metric, Side

EQUAL_COST = 0.01
Kind = Literal["better", "worse", "noise", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """One side against the first; `gain` is positive where it is better."""

    letter: str
    against: str
    kind: Kind
    gain: float
    interval: tuple[float, float] | None
    p: float | None
    """Adjusted for all comparisons; None where no noise is known."""
    paired: tuple[int, float, tuple[float, float]] | None
    """Over the seeds that both have: how many, the mean gain, its 95 % interval."""
    words: str
    assumed: tuple[str, ...] = ()
    """Of the two, those with one run: the verdict holds if they scatter as the others do."""


def judge(comparison: Comparison) -> list[Verdict]:
    """Every side against the first, with Holm's correction over all of them."""
    first, *others = comparison.sides
    samples = {side.letter: Sample.of(side.finals) for side in comparison.sides}
    found = {
        side.letter: gain_between(
            comparison.metric,
            samples[first.letter],
            samples[side.letter],
            lent_spread(samples, first, side),
        )
        for side in others
    }
    known = {letter: each for letter, each in found.items() if each is not None}
    tested = dict(zip(known, holm([each.p for each in known.values()]), strict=True))
    return [
        _verdict(comparison, first, side, samples, found[side.letter], tested.get(side.letter))
        for side in others
    ]


def gain_between(
    metric: Metric, first: Sample, other: Sample, lent: Spread | None = None
) -> Difference | None:
    """The gain of `other` over `first` with its error; None where no repeats tell the noise."""
    return difference(metric.gain(first.mean, other.mean), first, other, lent)


def lent_spread(samples: dict[str, Sample], first: Side, side: Side) -> Spread | None:
    """What the repeats of all other sides say of the noise."""
    rest = [s for letter, s in samples.items() if letter not in (first.letter, side.letter)]
    return pooled([sample.spread for sample in rest if sample.spread is not None])


def _verdict(
    comparison: Comparison,
    first: Side,
    side: Side,
    samples: dict[str, Sample],
    found: Difference | None,
    tested: tuple[float, float] | None,
) -> Verdict:
    metric = comparison.metric
    gain = metric.gain(samples[first.letter].mean, samples[side.letter].mean)
    paired = paired_gain(metric, first, side)
    if found is None or tested is None:
        words = _unknown_words(metric, first, side, gain) + _cost_words(first, side)
        return Verdict(side.letter, first.letter, "unknown", gain, None, None, paired, words)
    p, level = tested
    reach = found.half_width(level)
    interval = (gain - reach, gain + reach)
    kind: Kind = "noise" if p > ALPHA else "better" if gain > 0 else "worse"
    words = _words(metric, first, side, kind, gain, interval, p)
    words += _cost_words(first, side)
    if kind == "noise":
        words += _whose_noise(first, side)
        words += _more_repeats(gain, pooled([s.spread for s in samples.values() if s.spread]))
    assumed = tuple(each.letter for each in _alone(first, side))
    return Verdict(side.letter, first.letter, kind, gain, interval, p, paired, words, assumed)


def paired_gain(
    metric: Metric, first: Side, side: Side
) -> tuple[int, float, tuple[float, float]] | None:
    """The gain over pairs of repeats with the same seeds; None of fewer than two pairs.

    What a seed does to both sides alike is no part of it. For information: two tests of which the
    better one counts would find more than one false gain in twenty.
    """
    theirs = {tuple(sorted(r.seeds.items())): r.final for r in side.repeats}
    pairs = [(r.final, theirs.get(tuple(sorted(r.seeds.items())))) for r in first.repeats]
    gains = [
        metric.gain(one, other) for one, other in pairs if one is not None and other is not None
    ]
    if len(gains) < 2:
        return None
    sample = Sample.of(gains)
    assert sample.spread is not None, "two gains have a spread"
    reach = quantile(1 - ALPHA / 2, sample.spread.dof) * sample.spread.sd / len(gains) ** 0.5
    return len(gains), sample.mean, (sample.mean - reach, sample.mean + reach)


_CONCLUSIONS = {
    "better": "better: LARGER THAN THE NOISE",
    "worse": "worse: LARGER THAN THE NOISE",
    "noise": "INSIDE THE NOISE",
    "unknown": "CANNOT BE TOLD",
}


def conclusion(verdict: Verdict) -> str:
    """The verdict in three words, and what it rests on."""
    return _CONCLUSIONS[verdict.kind] + (", IF ALL SCATTER ALIKE" if verdict.assumed else "")


def amount(gain: float, metric: Metric) -> str:
    """`0.0123 bits per byte better`."""
    return f"{abs(gain):.4f} {metric.title} {'better' if gain >= 0 else 'worse'}"


def _words(
    metric: Metric,
    first: Side,
    side: Side,
    kind: Kind,
    gain: float,
    interval: tuple[float, float],
    p: float,
) -> str:
    low, high = interval
    said = f"{side.letter} is {amount(gain, metric)} than {first.letter}"
    said += f" (95 % interval of the gain {low:+.4f} to {high:+.4f}, p = {_p_text(p)}): "
    return said + ("inside the noise." if kind == "noise" else _larger_words(first, side))


def _larger_words(first: Side, side: Side) -> str:
    """A new recipe may well scatter more: one of twice the deviation, run once, against three runs
    of no other mean is told from them in one case of eight, not of twenty.
    """
    alone = _alone(first, side)
    if not alone:
        return "larger than the noise."
    if len(alone) == 2:
        return (
            "if both scatter as the other sides do, larger than the noise. Neither is repeated: "
            "repeats of both would tell."
        )
    one, repeated = alone[0].letter, (side if alone[0] is first else first).letter
    return (
        f"if {one} scatters as {repeated} does, larger than the noise. {one} has one run: repeats "
        "of it would tell."
    )


def _alone(first: Side, side: Side) -> list[Side]:
    """Those of the two that have one run, which tells no spread."""
    return [each for each in (first, side) if len(each.finals) < 2]


def _p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _cost_words(first: Side, side: Side) -> str:
    """A gain that was paid for is another one than a gain at equal cost."""
    spent, other = first.repeats[0].flops, side.repeats[0].flops
    if not spent or abs(other / spent - 1) < EQUAL_COST:
        return ""
    return f" {side.letter} took {other / spent:.3g} times the FLOPs of {first.letter}."


def _whose_noise(first: Side, side: Side) -> str:
    alone = _alone(first, side)
    if len(alone) == 1:
        repeated = side if alone[0] is first else first
        return f" {alone[0].letter} has one run: it is taken to scatter as {repeated.letter} does."
    return " Neither is repeated: both are taken to scatter as the others do." if alone else ""


def _more_repeats(gain: float, spread: Spread | None) -> str:
    if spread is None or not spread.sd:
        return ""
    count = needed_repeats(gain, spread)
    if count is None:
        return f" To tell a gain of this size would take more than {MAX_REPEATS} repeats of each."
    return f" To tell a true gain of this size takes about {count} repeats of each."


def _unknown_words(metric: Metric, first: Side, side: Side, gain: float) -> str:
    said = f"{side.letter} is {amount(gain, metric)} than {first.letter}: "
    if len(first.finals) + len(side.finals) > 2:
        return (
            said + "cannot be told from noise, since all repeats came out equal to the last digit."
        )
    return (
        said + "cannot be told from noise: there is one run of each. Repeat one of them, or both."
    )


def needed_commands(comparison: Comparison, verdicts: Sequence[Verdict]) -> list[str]:
    """How to make the repeats for lack of which nothing, or little, or too much can be told."""
    letters = {v.letter for v in verdicts if v.kind in ("unknown", "noise")}
    letters |= {v.against for v in verdicts if v.kind in ("unknown", "noise")}
    letters |= {letter for verdict in verdicts for letter in verdict.assumed}
    if len(comparison.sides) == 1:
        letters = {comparison.sides[0].letter}
    wanted = [side for side in comparison.sides if side.letter in letters and len(side.finals) < 3]
    return [f"{side.letter}: {side.repeat_command}" for side in wanted if side.repeat_command]


def noise_words(side: Side, metric: Metric) -> str:
    """What the repeats of one recipe say by themselves: how small a gain they would show."""
    sample = Sample.of(side.finals)
    if sample.spread is None:
        return f"{side.letter} has one run, which says nothing of the noise."
    reach = quantile(1 - ALPHA / 2, 2 * sample.spread.dof)
    smallest = reach * sample.spread.sd * (2 / sample.count) ** 0.5
    return (
        f"{side.letter} has {sample.count} repeats with a standard deviation of "
        f"{sample.spread.sd:.4f}: against as many repeats of another recipe a difference of less "
        f"than {smallest:.4f} {metric.title} is noise."
    )
