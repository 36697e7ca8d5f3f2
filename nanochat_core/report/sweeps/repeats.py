"""Points that differ in a seed only are repeats of one another: their mean and their spread."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat_core.report.sweeps.recipe import Value
from nanochat_core.report.sweeps.rows import PointRow

Measure = Callable[[PointRow], float | None]
Setting = tuple[tuple[str, Value], ...]


def is_seed(name: str) -> bool:
    """Whether a varied field is a seed, as `pretrain.seed` and `pretrain.data.seed`."""
    return name.rpartition(".")[2] == "seed"


def setting(row: PointRow) -> Setting:
    """What was varied in a point, seeds aside."""
    return tuple((name, value) for name, value in row.values.items() if not is_seed(name))


def grouped(rows: Sequence[PointRow]) -> dict[Setting, list[PointRow]]:
    """Repeats together, in the order in which their settings first appear."""
    groups: dict[Setting, list[PointRow]] = {}
    for row in rows:
        groups.setdefault(setting(row), []).append(row)
    return groups


@dataclass(frozen=True)
class Average:
    """The mean of repeats; `deviation` is their standard deviation, of two or more."""

    number: int
    mean: float
    deviation: float | None

    def text(self, decimals: int) -> str:
        """`1.4580, sd 0.0031`."""
        shown = f"{self.mean:.{decimals}f}"
        return shown if self.deviation is None else f"{shown} (sd {self.deviation:.{decimals}f})"


def average(rows: Sequence[PointRow], measure: Measure) -> Average | None:
    """The mean of what was measured of these points; None where nothing was."""
    values = [value for row in rows if (value := measure(row)) is not None]
    if not values:
        return None
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Average(1, mean, None)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Average(len(values), mean, math.sqrt(variance))
