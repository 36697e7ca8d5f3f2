"""The sides at equal steps, equal FLOPs and equal time, and what it takes to draw level."""

from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_core.report.comparing.noise import Difference, Sample
from nanochat_core.report.comparing.sides import AXES, Axis, Comparison, Side
from nanochat_core.report.comparing.verdicts import gain_between, lent_spread
from nanochat_core.report.numbers import duration

GRID_POINTS = 200


@dataclass(frozen=True)
class Budget:
    """An amount that every side has spent, and what each had come to then."""

    axis: Axis
    amount: float
    samples: dict[str, Sample]


@dataclass(frozen=True)
class Band:
    """A mean over a grid, with a value below and above it; those are empty where none is known."""

    places: tuple[float, ...]
    means: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


def budgets(comparison: Comparison) -> list[Budget]:
    """The largest amount of each kind that all sides have spent."""
    found = []
    for axis in AXES:
        if places := _grid(comparison.sides, axis):
            values = {side.letter: side.values_at(axis, places[-1]) for side in comparison.sides}
            samples = {letter: Sample.of(each) for letter, each in values.items()}
            found.append(Budget(axis, places[-1], samples))
    return found


def amount_text(axis: Axis, amount: float) -> str:
    """`1,500 steps`, `1.39e+13 FLOPs`, `2 m 56 s`."""
    if axis == "seconds":
        return duration(amount)
    return f"{amount:,.0f} steps" if axis == "steps" else f"{amount:.3g} FLOPs"


def side_band(side: Side, axis: Axis) -> Band:
    """The mean of the repeats, and one standard deviation to either side where there are two."""
    places = _grid([side], axis)
    samples = [Sample.of(side.values_at(axis, place)) for place in places]
    means = tuple(sample.mean for sample in samples)
    if not samples or samples[0].spread is None:
        return Band(places, means)
    sds = [sample.spread.sd for sample in samples if sample.spread is not None]
    low = tuple(mean - sd for mean, sd in zip(means, sds, strict=True))
    high = tuple(mean + sd for mean, sd in zip(means, sds, strict=True))
    return Band(places, means, low, high)


def gain_band(comparison: Comparison, side: Side, axis: Axis) -> Band:
    """The gain over the first side as far as all curves go, with its 95 % interval."""
    first, places = comparison.sides[0], _grid(comparison.sides, axis)
    found: list[tuple[float, Difference | None]] = []
    for place in places:
        samples = {s.letter: Sample.of(s.values_at(axis, place)) for s in comparison.sides}
        one, other = samples[first.letter], samples[side.letter]
        lent = lent_spread(samples, first, side)
        gain = comparison.metric.gain(one.mean, other.mean)
        found.append((gain, gain_between(comparison.metric, one, other, lent)))
    gains = tuple(gain for gain, _ in found)
    if all(each is None for _, each in found):
        return Band(places, gains)
    # Before the first step, say, all are equal: there is no noise.
    reach = [0.0 if each is None else each.half_width() for _, each in found]
    low = tuple(gain - half for gain, half in zip(gains, reach, strict=True))
    high = tuple(gain + half for gain, half in zip(gains, reach, strict=True))
    return Band(places, gains, low, high)


def _grid(sides: Sequence[Side], axis: Axis) -> tuple[float, ...]:
    """Where all curves are looked at: as far as all go, where all were measured, and at the end.

    Curves that were never measured at the same places, as in seconds, are looked at wherever one
    was: between two measurements a straight line stands for them.
    """
    curves = [repeat.curve.along(axis) for side in sides for repeat in side.repeats if repeat.curve]
    if not curves or any(not any(repeat.curve for repeat in side.repeats) for side in sides):
        return ()
    first, last = max(places[0] for places in curves), min(places[-1] for places in curves)
    if first > last:
        return ()
    common = set(curves[0]).intersection(*curves[1:])
    if len(common) < 2:
        common = {place for places in curves for place in places if first <= place <= last}
    inside = sorted(common | {last})
    stride = max(1, -(-len(inside) // GRID_POINTS))
    # Counted from the end: what matters most is there.
    return tuple(reversed(inside[::-1][::stride]))


def spent_to_draw_level(comparison: Comparison, side: Side, axis: Axis) -> float | None:
    """The share of what the first side spent after which `side` was as good as that came out.

    By the mean curves; None where it never was, or where that is not known.
    """
    first = side_band(comparison.sides[0], axis)
    own = side_band(side, axis)
    if not first.places or not own.places:
        return None
    goal = first.means[-1]
    gains = [comparison.metric.gain(goal, mean) for mean in own.means]
    after = next((i for i, gain in enumerate(gains) if gain >= 0), None)
    if after is None:
        return None
    place = own.places[after]
    if after:
        before, share = own.places[after - 1], -gains[after - 1] / (gains[after] - gains[after - 1])
        place = before + share * (place - before)
    return place / first.places[-1]
