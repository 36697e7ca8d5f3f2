"""Differences of means of few repeats: Welch's test, Student's distribution, Holm's correction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ALPHA = 0.05
"""Of all comparisons together: one in twenty finds a gain where there is none."""
POWER = 0.8
"""Asked of the number of repeats that would tell a difference."""
MAX_REPEATS = 50


@dataclass(frozen=True)
class Spread:
    """A standard deviation, and from how many degrees of freedom it is known."""

    sd: float
    dof: int


@dataclass(frozen=True)
class Sample:
    """Mean and number of some values, and their spread where there are two or more."""

    mean: float
    count: int
    spread: Spread | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """Of one value or more."""
        mean = math.fsum(values) / len(values)
        if len(values) < 2:
            return cls(mean, len(values), None)
        dof = len(values) - 1
        return cls(mean, len(values), Spread(_root_of_squares(values, mean, dof), dof))


def _root_of_squares(values: Sequence[float], mean: float, dof: int) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / dof)


@dataclass(frozen=True)
class Difference:
    """A difference of two means: its standard error, degrees of freedom, two-sided p value."""

    value: float
    stderr: float
    dof: float

    @property
    def p(self) -> float:
        """How often chance alone would make a difference as large as this."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.dof, -abs(self.value) / self.stderr))

    def half_width(self, level: float = ALPHA) -> float:
        """Of the interval that misses the true difference in a share `level` of all cases."""
        return quantile(1 - level / 2, self.dof) * self.stderr


def quantile(share: float, dof: float) -> float:
    """Of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, share))


def pooled(spreads: Sequence[Spread]) -> Spread | None:
    """One spread for all, weighted by degrees of freedom; None of none."""
    dof = sum(spread.dof for spread in spreads)
    if not dof:
        return None
    return Spread(math.sqrt(sum(spread.dof * spread.sd**2 for spread in spreads) / dof), dof)


def difference(value: float, one: Sample, other: Sample, lent: Spread | None) -> Difference | None:
    """`value`, the difference of their means, with its error; None where nothing tells that.

    Both repeated: Welch (1947), variances of their own. Else the spread that there is holds for
    both: of either, or `lent` by others. A spread of zero is not believed.
    """
    if one.spread is not None and other.spread is not None:
        parts = [s.spread.sd**2 / s.count for s in (one, other) if s.spread is not None]
        variance = sum(parts)
        weights = sum(
            p**2 / s.spread.dof for p, s in zip(parts, (one, other), strict=True) if s.spread
        )
        dof = variance**2 / weights if weights else 0.0
    else:
        shared = one.spread or other.spread or lent
        if shared is None:
            return None
        variance, dof = shared.sd**2 * (1 / one.count + 1 / other.count), float(shared.dof)
    return Difference(value, math.sqrt(variance), dof) if variance > 0 else None


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[tuple[float, float]]:
    """Each p value adjusted for all of them (Holm, 1979), and the level at which it is tested.

    p is below its level exactly where the adjusted p is below `alpha`.
    """
    count, largest, is_over = len(p_values), 0.0, False
    level = alpha
    found: dict[int, tuple[float, float]] = {}
    for rank, place in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[place]))
        if not is_over:
            level = alpha / (count - rank)
        # After the first that is not told from chance none is: they keep its level.
        is_over = is_over or p_values[place] >= level
        found[place] = (largest, level)
    return [found[place] for place in range(count)]


def needed_repeats(gain: float, spread: Spread) -> int | None:
    """Repeats of each of two sides that would tell a true gain of this size in four of five cases.

    None for more than MAX_REPEATS.
    """
    for count in range(2, MAX_REPEATS + 1):
        dof = 2 * count - 2
        reach = (quantile(1 - ALPHA / 2, dof) + quantile(POWER, dof)) * math.sqrt(2 / count)
        if reach * spread.sd <= abs(gain):
            return count
    return None
