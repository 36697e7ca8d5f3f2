"""Scaling laws from points at budgets of compute: the best size of each, and how it grows.

Twice, since each way has what the other lacks. By the points of every budget alone: valleys of
ln(bpb) against parameters, tokens, or tokens per parameter (isoFLOP curves, approach 2 of Hoffmann
et al. 2022, arXiv:2203.15556), which assume little and tell less. By all points together: the
surface (approach 3), which gives exponents, predictions and the narrower intervals.
The logarithm of bpb has its bottom where bpb has it; noise in it is relative, and alike at all
budgets; and it is closer to a parabola: for exponents of 0.3 its fourth derivative nearly vanishes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanochat_core.errors import DataError
from nanochat_core.report.sweeps.fits import (
    MAX_SKEW,
    Interval,
    Noise,
    Valley,
    fit_valleys,
    has_valley,
)
from nanochat_core.report.sweeps.surface import Surface, fit_surface

RATIO, PARAMETERS, TOKENS = "tokens_per_parameter", "parameters", "tokens"
AXES = (RATIO, PARAMETERS, TOKENS)
SKEWS = {RATIO: MAX_SKEW / 2, PARAMETERS: MAX_SKEW, TOKENS: MAX_SKEW}
"""At equal compute ln(D/N) goes twice as far as ln N."""


@dataclass(frozen=True)
class ScalingPoint:
    """A run: what it was to cost and what it cost, its size, its tokens, and how good it became."""

    label: str
    budget: float
    flops: float
    scaling_parameters: int
    tokens: int
    bpb: float

    def on(self, axis: str) -> float:
        """The place on an axis, in its own units."""
        ratio = self.tokens / self.scaling_parameters
        return {RATIO: ratio, PARAMETERS: self.scaling_parameters, TOKENS: self.tokens}[axis]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; None where there are no degrees of freedom for one."""

    value: float
    interval: Interval | None

    def mapped(self, start: float, factor: float) -> "Estimate":
        """The estimate of start + factor · value."""
        interval = self.interval and self.interval.mapped(start, factor)
        return Estimate(start + factor * self.value, interval)

    def exp(self) -> "Estimate":
        """From a logarithm to units; an end that is not known is 0 or infinite."""
        interval = self.interval and Interval(_exp(self.interval.low), _exp(self.interval.high))
        return Estimate(_exp(self.value), interval)


def _exp(logarithm: float) -> float:
    return math.exp(logarithm) if logarithm < 700 else math.inf


@dataclass(frozen=True)
class Budget:
    """The points of one budget, smallest model first."""

    flops: float
    points: tuple[ScalingPoint, ...]

    @property
    def t(self) -> float:
        """ln(compute) that was really spent."""
        return math.fsum(math.log(p.flops) for p in self.points) / len(self.points)

    @property
    def has_valley(self) -> bool:
        """Whether it has enough sizes for one."""
        return all(has_valley([point.on(axis) for point in self.points]) for axis in AXES)

    def extent(self, axis: str) -> tuple[float, float]:
        """The smallest and the largest place that was measured."""
        places = [point.on(axis) for point in self.points]
        return min(places), max(places)


@dataclass(frozen=True)
class Curves:
    """The valleys on one axis, by FLOPs of the budget."""

    noise: Noise
    valleys: Mapping[float, Valley]
    optima: Mapping[float, Estimate | None]
    """None of a hill, and of a valley without a bottom."""


@dataclass(frozen=True)
class Joint:
    """What all points say together, by axis."""

    surface: Surface
    exponents: Mapping[str, Estimate]
    optima: Mapping[float, Mapping[str, Estimate]]
    """By FLOPs of the budget."""
    middle: Mapping[str, Estimate]
    """At the geometric mean of all that was spent."""


@dataclass(frozen=True)
class Prediction:
    """What the surface says of one amount of compute."""

    flops: float
    best: Mapping[str, Estimate]
    bpb: Estimate
    """Of the best size, by the law; single runs scatter about it."""
    beyond: float
    """By what factor outside the measured budgets; 1 inside."""


@dataclass(frozen=True)
class Laws:
    """All that was found."""

    budgets: tuple[Budget, ...]
    curves: Mapping[str, Curves]
    """By axis; empty when no budget has three sizes."""
    joint: Joint | None
    """None with fewer than five points, three sizes or two budgets."""

    @property
    def points(self) -> list[ScalingPoint]:
        """Of all budgets."""
        return [point for budget in self.budgets for point in budget.points]

    def predict(self, flops: float) -> Prediction | None:
        """The best size at any compute."""
        if self.joint is None:
            return None
        surface, t = self.joint.surface, math.log(flops)
        spent = [budget.t for budget in self.budgets]
        return Prediction(
            flops=flops,
            best=_best(surface, t),
            bpb=Estimate(surface.best_loss_at(t), surface.best_loss_interval(t)),
            beyond=math.exp(max(t - max(spent), min(spent) - t, 0.0)),
        )


def fit_laws(points: Sequence[ScalingPoint]) -> Laws:
    """Valleys and the surface; what there are too few points for is left out."""
    _check(points)
    budgets = tuple(
        Budget(
            flops,
            tuple(
                sorted(
                    (point for point in points if point.budget == flops),
                    key=lambda point: point.scaling_parameters,
                )
            ),
        )
        for flops in sorted({point.budget for point in points})
    )
    curved = [budget for budget in budgets if budget.has_valley]
    curves = {axis: _curves(axis, curved) for axis in AXES} if curved else {}
    return Laws(budgets, curves, _joint(budgets))


def _check(points: Sequence[ScalingPoint]) -> None:
    if not points:
        raise DataError("scaling laws: no points; make at least one budget of three depths")
    for point in points:
        numbers = (point.budget, point.flops, point.scaling_parameters, point.tokens, point.bpb)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise DataError(
                f"scaling laws: point {point.label} has budget {point.budget:g}, {point.flops:g} "
                f"FLOPs, {point.scaling_parameters} parameters, {point.tokens} tokens and "
                f"{point.bpb:g} bits per byte; all have to be above 0. Leave it out or run it again"
            )


def _curves(axis: str, budgets: Sequence[Budget]) -> Curves:
    logarithms = [
        (
            [math.log(point.on(axis)) for point in budget.points],
            [math.log(point.bpb) for point in budget.points],
        )
        for budget in budgets
    ]
    found = fit_valleys(logarithms, SKEWS[axis])
    optima: dict[float, Estimate | None] = {}
    for i, budget in enumerate(budgets):
        bottom = found.valley(i).bottom
        estimate = None if bottom is None else Estimate(bottom, found.interval(i)).exp()
        optima[budget.flops] = estimate
    valleys = {budget.flops: found.valley(i) for i, budget in enumerate(budgets)}
    return Curves(found.noise, valleys, optima)


def _joint(budgets: Sequence[Budget]) -> Joint | None:
    points = [point for budget in budgets for point in budget.points]
    surface = len(budgets) > 1 and fit_surface(
        [point.scaling_parameters for point in points],
        [point.tokens for point in points],
        [point.flops for point in points],
        [point.bpb for point in points],
    )
    if not surface:
        return None
    slope = Estimate(surface.slope, surface.slope_interval())
    return Joint(
        surface=surface,
        exponents=_of_size(surface, slope, 1.0),
        optima={budget.flops: _best(surface, budget.t) for budget in budgets},
        middle=_best(surface, surface.pivot),
    )


def _best(surface: Surface, t: float) -> dict[str, Estimate]:
    """The best size at ln(compute) `t`; tokens are what the compute pays for at that size."""
    size = Estimate(surface.size_at(t), surface.size_interval(t))
    found = _of_size(surface, size, surface.tokens_at(t, 0.0))
    return {axis: estimate.exp() for axis, estimate in found.items()}


def _of_size(surface: Surface, size: Estimate, start: float) -> dict[str, Estimate]:
    """What follows for the other axes from ln D = start - gamma ln N."""
    return {
        RATIO: size.mapped(start, -surface.gamma - 1),
        PARAMETERS: size,
        TOKENS: size.mapped(start, -surface.gamma),
    }
