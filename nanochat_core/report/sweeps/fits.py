"""Where a valley has its bottom, with a 95 % interval that says so when the data do not tell.

A *valley* is ln(loss) over the logarithm x of a size, at one budget of compute. It is fitted by
least squares as level + curvature g(x - bottom) with

    g(z) = 2 (e^(kz) - 1 - kz) / k²,   which is the parabola z² + k z³ / 3 + ...,

convex, and steeper on one side by the skew k, which is the same at all budgets. For a loss
E + A / N^a + B / D^b at C ~ N D the skew over ln N is b - a. Parabolas (k = 0) take it for nothing,
which moves their bottoms: by 8 % of D/N for a = 0.34, b = 0.28 and sizes over a factor of 100
(see arXiv:2603.22339 on that bias). Here it may be anything up to `MAX_SKEW`.

The bottom is a function of a ratio of coefficients, so a standard error of it is wrong when the
curvature is ill-determined. A place is in the interval, instead, when the best valleys of which
this one has its bottom *there* leave at most s² F(0.95; 1, dof) more than the best of all; s² and
dof are pooled over budgets. For parabolas whose curvature is well-determined that is the interval
of Fieller (1954, J. R. Stat. Soc. B 16, 175-185); else it may have no end, as every honest one
must (Gleser and Hwang 1987, Ann. Stat. 15, 1351-1362). Hills are not admitted, which leaves out
the half-line that is in Fieller's set as the top of a hill. By simulation (parabolas; 200,000 sets
each; 4 and 7 points; 1, 4 and 20 dof) it covers 94.3 to 97.4 %, even without any curvature.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
MIN_PLACES = 3
"""Of a valley: with fewer different places there is none."""
MAX_SKEW = 0.3
"""Over ln N. Published a and b differ by less than 0.1 (0.34 and 0.28 in arXiv:2203.15556, 0.35
and 0.37 in arXiv:2404.10102)."""
REACH = 40.0
"""An interval that goes on for so many units of ln(size) has no end: e^40 is 10^17."""
_SKEWS, _NEXT_TO_NOTHING = 41, 1e-9
_STEPS = 70
"""Places tried on either side, from 1e-5 of the reach on, each 1.18 times as far as the last."""
_EXACT = 1e-4
"""To what an end of an interval is found."""


@dataclass(frozen=True)
class Interval:
    """What the data do not exclude; an end that they do not give is infinite."""

    low: float
    high: float

    @property
    def is_bounded(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def contains(self, value: float) -> bool:
        """Whether a value is inside, ends included."""
        return self.low <= value <= self.high

    def mapped(self, start: float, factor: float) -> "Interval":
        """The interval of start + factor · value."""
        ends = sorted((start + factor * self.low, start + factor * self.high))
        return Interval(ends[0], ends[1])


NO_ENDS = Interval(-math.inf, math.inf)
"""Of what the data say nothing about."""


@dataclass(frozen=True)
class Noise:
    """The variance of a point about its fit, pooled over budgets."""

    variance: float
    dof: int

    @property
    def sd(self) -> float:
        """As a share of the loss, because it is of ln(loss)."""
        return math.sqrt(self.variance)

    @property
    def allowed(self) -> float:
        """By how much a sum of squares may grow under one restriction."""
        assert self.dof > 0, "no degrees of freedom, no interval"
        return self.variance * float(stats.f.ppf(CONFIDENCE, 1, self.dof))


@dataclass(frozen=True)
class Valley:
    """Least squares of values over places, for one skew.

    Places count from `center`. Sums are of products of what is left of x, g and y by their means.
    """

    center: float
    skew: float
    total: float
    """Sum of squares of y."""
    sums: tuple[float, float, float, float, float]
    """xx, xg, gg, xy, gy."""
    level: float
    slope: float
    curvature: float
    """Of y = level + slope x + curvature g(x)."""

    @property
    def bottom(self) -> float | None:
        """Where it is level; None of a hill, and of what falls or rises for ever."""
        if self.curvature <= 0:
            return None
        inner = self.slope / (2 * self.curvature)
        if not self.skew:
            return self.center - inner
        grown = 1 - self.skew * inner
        return self.center + math.log(grown) / self.skew if grown > 0 else None

    @property
    def residual(self) -> float:
        """Sum of squares that is left."""
        _, _, _, xy, gy = self.sums
        return max(self.total - self.slope * xy - self.curvature * gy, 0.0)

    def at(self, places: Floats) -> Floats:
        """The fitted values."""
        x = places - self.center
        return self.level + self.slope * x + self.curvature * _bend(x, self.skew)


def residual_with(bottoms: Floats, valleys: Sequence[Valley]) -> Floats:
    """What is left of the same points with the bottom given: a row for every skew of `valleys`."""
    total, center = valleys[0].total, valleys[0].center
    xx, xg, gg, xy, gy = np.array([valley.sums for valley in valleys]).T[:, :, None]
    skew = np.array([valley.skew or _NEXT_TO_NOTHING for valley in valleys])[:, None]
    # g(x - h) = p g(x) + q x + a constant: a regression on one column.
    growth = np.expm1(-skew * (bottoms - center))
    p, q = 1 + growth, 2 * growth / skew
    along = np.maximum(p * gy + q * xy, 0.0)
    return np.asarray(total - along**2 / (p**2 * gg + 2 * p * q * xg + q**2 * xx))


def _bend(x: Floats, skew: float) -> Floats:
    if not skew:
        return x**2
    return np.asarray(2 * (np.expm1(skew * x) - skew * x) / skew**2)


def has_valley(places: Sequence[float]) -> bool:
    """Whether there are enough different places for one."""
    return len(set(places)) >= MIN_PLACES


def fit_valley(places: Sequence[float], values: Sequence[float], skew: float = 0.0) -> Valley:
    """The best one through points at three or more different places."""
    assert has_valley(places), f"a valley through {len(set(places))} places"
    everywhere, heights = np.asarray(places, np.float64), np.asarray(values, np.float64)
    center = float(everywhere.mean())
    x = everywhere - center
    bend = _bend(x, skew)
    g, y = bend - bend.mean(), heights - heights.mean()
    xx, xg, gg, xy, gy = (float(a @ b) for a, b in ((x, x), (x, g), (g, g), (x, y), (g, y)))
    # From the center on, x and g have next to nothing in common, so this is exact enough.
    curvature = (gy - xg * xy / xx) / (gg - xg**2 / xx)
    slope = (xy - xg * curvature) / xx
    return Valley(
        center=center,
        skew=skew,
        total=float(y @ y),
        sums=(xx, xg, gg, xy, gy),
        level=float(heights.mean() - curvature * bend.mean()),
        slope=slope,
        curvature=curvature,
    )


@dataclass(frozen=True)
class Valleys:
    """Those of all budgets, for every skew tried; `best` is the place of the one that fits best."""

    by_skew: tuple[tuple[Valley, ...], ...]
    best: int
    noise: Noise

    @property
    def skew(self) -> float:
        """The one that fits best."""
        return self.by_skew[self.best][0].skew

    def valley(self, index: int) -> Valley:
        """Of one budget, with the best skew."""
        return self.by_skew[self.best][index]

    def interval(self, index: int) -> Interval | None:
        """Of the bottom of one budget; None without degrees of freedom."""
        if not self.noise.dof:
            return None
        own = [row[index] for row in self.by_skew]
        others = np.array([_residual(row) for row in self.by_skew]) - [v.residual for v in own]

        def left(places: Floats) -> Floats:
            """With the bottom there, the skew at its best, and the other budgets as they like."""
            return np.asarray((residual_with(places, own) + others[:, None]).min(axis=0))

        valley = self.valley(index)
        return hull(left, (valley.center, valley.bottom), self.noise.allowed)


def fit_valleys(
    budgets: Sequence[tuple[Sequence[float], Sequence[float]]], max_skew: float = MAX_SKEW
) -> Valleys:
    """Places and values of every budget; without points to spare the skew is taken for nothing."""
    assert budgets, "no budget to fit"
    spare = sum(len(places) - MIN_PLACES for places, _ in budgets)
    skews = [0.0]
    if spare >= 2 and max_skew:
        # The middle one of an odd number is 0, exactly.
        skews = [max_skew * (i / (_SKEWS // 2) - 1) for i in range(_SKEWS)]
    by_skew = tuple(
        tuple(fit_valley(places, values, skew) for places, values in budgets) for skew in skews
    )
    left = [_residual(row) for row in by_skew]
    best = int(np.argmin(left))
    dof = spare - 1 if len(skews) > 1 else spare
    return Valleys(by_skew, best, Noise(left[best] / dof if dof else 0.0, dof))


def _residual(row: Sequence[Valley]) -> float:
    return math.fsum(valley.residual for valley in row)


def hull(
    left: Callable[[Floats], Floats], around: tuple[float, float | None], allowed: float
) -> Interval:
    """From the lowest to the highest place where `left` is at most `allowed` above its least.

    All places up to `REACH` from the first of `around` are tried, since a far one may be allowed
    beyond one that is not; the closer to it or to the second one, the denser.
    """
    steps = np.geomspace(1e-5, 1.0, _STEPS) * REACH
    steps = np.concatenate([-steps[::-1], [0.0], steps])
    center, best = around
    places = center + steps
    if best is not None:
        near = best + steps
        places = np.union1d(places, near[abs(near - center) < REACH])
    values = left(places)
    limit = float(values.min()) + allowed
    inside = np.flatnonzero(values <= limit)

    def over(place: float) -> float:
        return float(left(np.array([place]))[0]) - limit

    def end(last: int, outwards: int) -> float:
        if not 0 <= last + outwards < len(places):
            return outwards * math.inf
        near, far = places[last], places[last + outwards]
        return float(optimize.brentq(over, near, far, xtol=_EXACT)) if over(near) < 0 else near

    return Interval(end(int(inside[0]), -1), end(int(inside[-1]), 1))
