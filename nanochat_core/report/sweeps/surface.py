"""The whole loss surface at once: L = E + A / N^a + B / D^b (Hoffmann et al. 2022).

Approach 3 of arXiv:2203.15556. Fitted to all points of all budgets it needs five numbers where
parabolas need three a budget, and it does not take the two sides of a valley for alike, as they do
(what that costs: arXiv:2603.22339). In return, it is only as good as its formula; `law_checks`
tests whether that fits.

About the best size n* = ln N* and d* = ln D* at one compute, the pivot, the same surface is

    L = E + R (w e^(a (n* - n)) + (1 - w) e^(b (d* - d))),   w = bg / (a + bg)

which is linear in E and R (variable projection: Golub and Pereyra 1973) and has what is asked for
as parameters: n* at the pivot, and the exponent w / g of N*. g is from the cost of training,
C = k N^g D: 1 where FLOPs per token are proportional to N; attention makes it a little less.
Residuals are relative. Intervals are by profile, as in `fits`: a value is inside when the best
surface that has it leaves at most s² F(0.95; 1, dof) more than the best of all.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize

from nanochat_core.report.sweeps.fits import NO_ENDS, Floats, Interval, Noise

NUM_PARAMETERS = 5
SHARES = (0.005, 0.995)
"""Of w. At an end of it one of the two terms is nothing."""
SUMS = (0.02, 6.0)
"""Of a + bg: from nearly a logarithm of size, to steeper than any language model."""
FAR = 14.0
"""How far from the data the ends of its interval are looked for, in units of ln N: e^14 is 10^6."""
FAR_OUTSIDE = 3.0
"""A best size so far outside all measured ones, in the same units, is not told: e^3 is 20."""
LOSS_REACH = 3.0
"""How far from the best loss its interval may go, in units of its logarithm."""
_STARTS = tuple(itertools.product((0.3, 0.5, 0.7), (0.3, 0.7, 1.5), (-0.5, 0.0, 0.5)))
_LEVEL = 1e-9
"""A fitted surface that differs by no larger share of the losses says nothing of sizes."""
_FIRST_STEP, _EXACT = 0.02, 1e-5
"""Of the search for an end of an interval: how it starts, and how well the end is found."""


@dataclass(frozen=True)
class Measured:
    """The points: ln N, ln D, ln C of what was really run, the losses, and what they are held to.

    Residuals are shares of `scale`: of the losses at first, then of a first surface, since shares
    of losses that are low by chance count for more, which would pull the surface down.
    """

    n: Floats
    d: Floats
    c: Floats
    loss: Floats
    scale: Floats

    @cached_property
    def cost(self) -> tuple[float, float]:
        """ln k and g of C = k N^g D, by least squares."""
        gamma, kappa = np.polyfit(self.n, self.c - self.d, 1)
        return float(kappa), float(gamma)


@dataclass(frozen=True)
class Surface:
    """The surface that leaves the least, about the best size at the pivot."""

    measured: Measured
    pivot: float
    optimum: float
    """ln N* at the pivot."""
    share: float
    """w: D* grows as C^(1 - w)."""
    total: float
    """a + bg."""
    squares: float
    """Sum of squares of the relative residuals."""

    @property
    def noise(self) -> Noise:
        """About the surface."""
        dof = len(self.measured.loss) - NUM_PARAMETERS
        return Noise(self.squares / dof if dof else 0.0, dof)

    @property
    def gamma(self) -> float:
        """Of the cost."""
        return self.measured.cost[1]

    @property
    def exponents(self) -> tuple[float, float]:
        """a and b."""
        return self.total * (1 - self.share), self.total * self.share / self.gamma

    @property
    def slope(self) -> float:
        """Of ln N* over ln C."""
        return self.share / self.gamma

    def size_at(self, c: float) -> float:
        """ln N* at a compute."""
        return self.optimum + self.slope * (c - self.pivot)

    def tokens_at(self, c: float, size: float) -> float:
        """ln D that a compute pays at a size."""
        kappa, gamma = self.measured.cost
        return c - kappa - gamma * size

    def constants(self) -> tuple[float, float]:
        """E, and R: what is above it at the pivot's best size."""
        return _linear(self.measured, self._shape(self.measured.n, self.measured.d))

    def loss_at(self, n: Floats, d: Floats) -> Floats:
        """What the surface says of a size and tokens."""
        floor, reducible = self.constants()
        return floor + reducible * self._shape(n, d)

    def _shape(self, n: Floats, d: Floats) -> Floats:
        best_tokens = self.tokens_at(self.pivot, self.optimum)
        return _shape(n, d, (self.optimum, best_tokens), (self.share, self.total), self.gamma)

    @cached_property
    def is_level(self) -> bool:
        """Whether only E was fitted, as to a hill or equal losses: a and b are as they began."""
        fitted = self.loss_at(self.measured.n, self.measured.d)
        return float(np.ptp(fitted)) <= _LEVEL * float(fitted.max())

    def tells_size_at(self, c: float) -> bool:
        """Whether the best size is anywhere near the measured ones.

        A law may be followed to compute beyond the budgets, but has to be told inside them.
        """
        inside = min(max(c, float(self.measured.c.min())), float(self.measured.c.max()))
        return not self.is_level and abs(self.outside_at(inside)) <= FAR_OUTSIDE

    def outside_at(self, c: float) -> float:
        """How far the best size is below (negative) or above all measured ones, in ln N."""
        size = self.size_at(c)
        return size - min(max(size, float(self.measured.n.min())), float(self.measured.n.max()))

    def slope_interval(self) -> Interval | None:
        """Of the exponent of N*; how a best size grows that is not told is not told either."""
        if not self.tells_size_at(self.pivot):
            return NO_ENDS
        span = np.ptp(self.measured.n) or 1.0

        def refit(share: float, start: Floats) -> tuple[float, Floats]:
            squares, found = _solve(
                lambda z: _residuals(self.measured, self.pivot, z[0] * span, share, _sum(z[1])),
                start,
            )
            return squares, found

        start = np.array([self.optimum / span, _logit(self.total, SUMS)])
        shares = self._interval(refit, self.share, start, SHARES)
        return shares and shares.mapped(0.0, 1 / self.gamma)

    def size_interval(self, c: float) -> Interval | None:
        """Of ln N* at a compute."""
        if not self.tells_size_at(c):
            return NO_ENDS

        def refit(size: float, start: Floats) -> tuple[float, Floats]:
            return _solve(
                lambda z: _residuals(self.measured, c, size, _share(z[0]), _sum(z[1])), start
            )

        start = np.array([_logit(self.share, SHARES), _logit(self.total, SUMS)])
        ends = (float(self.measured.n.min()) - FAR, float(self.measured.n.max()) + FAR)
        return self._interval(refit, self.size_at(c), start, ends)

    def best_loss_at(self, c: float) -> float:
        """What the surface says of the best size at a compute."""
        size = self.size_at(c)
        return float(self.loss_at(np.array(size), np.array(self.tokens_at(c, size))))

    def best_loss_interval(self, c: float) -> Interval | None:
        """Of the same; a single run scatters about it, too."""
        if not self.tells_size_at(c):
            return Interval(0.0, math.inf)
        best = self.best_loss_at(c)
        span = float(np.ptp(self.measured.n)) or 1.0

        def refit(logarithm: float, start: Floats) -> tuple[float, Floats]:
            def residuals(z: Floats) -> Floats:
                about = (z[0] * span, _share(z[1]), _sum(z[2]))
                return _residuals(self.measured, c, *about, best_loss=math.exp(logarithm))

            return _solve(residuals, start)

        powers = (_logit(self.share, SHARES), _logit(self.total, SUMS))
        start = np.array([self.size_at(c) / span, *powers])
        ends = (math.log(best) - LOSS_REACH, math.log(best) + LOSS_REACH)
        found = self._interval(refit, math.log(best), start, ends)
        return found and Interval(math.exp(found.low), math.exp(found.high))

    def _interval(
        self,
        refit: Callable[[float, Floats], tuple[float, Floats]],
        best: float,
        start: Floats,
        ends: tuple[float, float],
    ) -> Interval | None:
        """Outwards from the best value, in growing steps, each fit from the one before."""
        if self.noise.dof <= 0 or not self.noise.variance:
            return None
        allowed = math.sqrt(self.noise.allowed)

        def end(border: float, direction: float) -> float:
            if (best - border) * direction >= 0:
                # What is best by the fit is already as far as anything is looked for.
                return direction * math.inf
            near, step, state = best, _FIRST_STEP, start
            while True:
                far = near + direction * step
                if (far - border) * direction >= 0:
                    far = border
                squares, found = refit(far, state)
                # Its root grows nearly in proportion to the distance, which makes the search short.
                grown = math.sqrt(max(squares - self.squares, 0.0))
                if grown > allowed:
                    break
                if far == border:
                    return direction * math.inf
                likely = abs(far - best) * (1.1 * allowed / max(grown, 1e-2 * allowed) - 1)
                near, state, step = far, found, max(likely, 0.2 * step)
            return _crossing(lambda v: refit(v, state)[0] - self.squares, allowed, near, far)

        return Interval(end(ends[0], -1.0), end(ends[1], 1.0))


def _crossing(grown: Callable[[float], float], allowed: float, near: float, far: float) -> float:
    """Where the root of what a sum of squares has grown by is `allowed`."""

    def over(value: float) -> float:
        return math.sqrt(max(grown(value), 0.0)) - allowed

    return float(optimize.brentq(over, near, far, xtol=_EXACT)) if over(near) < 0 else near


def fit_surface(
    sizes: Sequence[float],
    tokens: Sequence[float],
    compute: Sequence[float],
    losses: Sequence[float],
) -> Surface | None:
    """The best surface; None with too few points, sizes or budgets to tell one."""
    n, d, c = (np.log(np.asarray(values, np.float64)) for values in (sizes, tokens, compute))
    loss = np.asarray(losses, np.float64)
    if len(n) < NUM_PARAMETERS or len(set(sizes)) < 3 or len({round(x, 1) for x in c}) < 2:
        return None
    starts = [
        np.array([place, _logit(share, SHARES), _logit(total, SUMS)])
        for share, total, place in _STARTS
    ]
    first, found = _fit(Measured(n, d, c, loss, loss), starts)
    surface, _ = _fit(Measured(n, d, c, loss, first.loss_at(n, d)), [found])
    return surface


def _fit(measured: Measured, starts: list[Floats]) -> tuple[Surface, Floats]:
    """From the three best of the starts; also where that ended."""
    pivot, center = float(measured.c.mean()), float(measured.n.mean())
    span = float(np.ptp(measured.n))

    def residuals(z: Floats) -> Floats:
        return _residuals(measured, pivot, center + span * z[0], _share(z[1]), _sum(z[2]))

    ordered = sorted(starts, key=lambda z: float(residuals(z) @ residuals(z)))
    solved = [_solve(residuals, start) for start in ordered[:3]]
    squares, z = min(solved, key=lambda found: found[0])
    size = center + span * float(z[0])
    return Surface(measured, pivot, size, _share(z[1]), _sum(z[2]), squares), z


def _solve(residuals: Callable[[Floats], Floats], start: Floats) -> tuple[float, Floats]:
    found = optimize.least_squares(residuals, start, method="lm", xtol=1e-9, ftol=1e-9)
    return float(2 * found.cost), found.x


def _residuals(
    measured: Measured,
    pivot: float,
    optimum: float,
    share: float,
    total: float,
    *,
    best_loss: float | None = None,
) -> Floats:
    """Relative ones, with E and R at their best, or at their best with E + R given."""
    kappa, gamma = measured.cost
    best = (optimum, pivot - kappa - gamma * optimum)
    shape = _shape(measured.n, measured.d, best, (share, total), gamma)
    if best_loss is None:
        floor, reducible = _linear(measured, shape)
        return (floor + reducible * shape - measured.loss) / measured.scale
    left, heights = (measured.loss - best_loss) / measured.scale, (shape - 1) / measured.scale
    length = float(heights @ heights)
    reducible = min(max(float(left @ heights) / length, 0.0), best_loss) if length else 0.0
    return reducible * heights - left


def _shape(
    n: Floats, d: Floats, best: tuple[float, float], powers: tuple[float, float], gamma: float
) -> Floats:
    """What is above E, where 1 is the best at the pivot."""
    share, total = powers
    alpha, beta = total * (1 - share), total * share / gamma
    # A fit may try sizes that are absurdly far away; e^60 is far enough.
    by_size = np.exp(np.minimum(alpha * (best[0] - n), 60.0))
    by_tokens = np.exp(np.minimum(beta * (best[1] - d), 60.0))
    return np.asarray(share * by_size + (1 - share) * by_tokens)


def _linear(measured: Measured, shape: Floats) -> tuple[float, float]:
    """E and R of the least relative squares; neither is below 0."""
    ones, heights = 1 / measured.scale, shape / measured.scale
    wanted = measured.loss / measured.scale
    oo, oh, hh = ones @ ones, ones @ heights, heights @ heights
    o, h = ones @ wanted, heights @ wanted
    determinant = oo * hh - oh**2
    floor = (o * hh - h * oh) / determinant if determinant > 1e-12 * oo * hh else 0.0
    if floor <= 0:
        return 0.0, float(h / hh)
    reducible = (h - floor * oh) / hh
    return (float(floor), float(reducible)) if reducible > 0 else (float(o / oo), 0.0)


def _logit(value: float, ends: tuple[float, float]) -> float:
    # An end itself would be infinitely far away.
    part = min(max((value - ends[0]) / (ends[1] - ends[0]), 1e-6), 1 - 1e-6)
    return math.log(part / (1 - part))


def _between(z: float, ends: tuple[float, float]) -> float:
    # The hyperbolic tangent does not overflow.
    return ends[0] + (ends[1] - ends[0]) * (1 + math.tanh(z / 2)) / 2


def _share(z: float) -> float:
    return _between(z, SHARES)


def _sum(z: float) -> float:
    return _between(z, SUMS)
