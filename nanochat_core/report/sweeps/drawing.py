"""How the plots of a sweep look: panels, colours in an order, axes that fit the values."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from nanochat_core.report.figures import SEQUENCE
from nanochat_core.report.sweeps.recipe import Value
from nanochat_core.report.sweeps.table import power, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"
LineStyle = Literal["-", "--", ":", "-."]
STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")
FEW_COLORS = {1: (2,), 2: (0, 3), 3: (0, 2, 3), 4: (0, 1, 2, 3)}
"""Which of SEQUENCE a few things get: as far apart as they can be."""
MOST_TICKS = 9
"""More values than these get ticks where matplotlib puts them."""
SAME_COMPUTE = 1.05
"""Points within this factor of one another in FLOPs are not drawn against them."""
MOST_NAMED = 10
"""More lines than these are not named one by one."""
LONG_NAME, MOST_BELOW = 20, 6
"""Characters of a name, and how many names still have room in two lines below a figure."""
BPB_LABEL = "validation / bits per byte"
COMPUTE_LABEL = "FLOPs of pretraining"
LOG_FROM, POWERS_FROM = 5.0, 30.0
"""Ratios of FLOPs from which on an axis is logarithmic, and labelled with powers of ten alone."""
LOG_RATIO = 1.5
"""Between the largest and the smallest step of a scale that fits; a larger one is uneven."""


def ordered_colors(number: int) -> list[str]:
    """From light to dark: an order that is also seen without colour."""
    if number in FEW_COLORS:
        return [SEQUENCE[i] for i in FEW_COLORS[number]]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    # Viridis, which is made for every kind of colour vision; its last tenth is pale on white.
    scale = colormaps["viridis"]
    return [to_hex(scale(0.9 * (1 - i / (number - 1)))) for i in range(number)]


def is_numeric(values: Sequence[Value]) -> bool:
    """Whether values have places on an axis; True and False, and words, have names only."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def fits_log(values: Sequence[float]) -> bool:
    """Whether steps between the values are more even as ratios than as differences."""
    ordered = sorted(set(values))
    if len(ordered) < 2 or ordered[0] <= 0:
        return False
    if len(ordered) == 2:
        return ordered[1] >= 10 * ordered[0]
    ratios = [math.log(b / a) for a, b in itertools.pairwise(ordered)]
    steps = [b - a for a, b in itertools.pairwise(ordered)]
    return max(ratios) / min(ratios) < max(steps) / min(steps) / LOG_RATIO


def value_axis(axis: "Axes", values: Sequence[Value], label: str) -> Mapping[Value, float]:
    """Set up the x axis for these values; gives the place of each."""
    distinct = list(dict.fromkeys(values))
    axis.set_xlabel(label)
    if not is_numeric(distinct):
        places: dict[Value, float] = {value: float(i) for i, value in enumerate(distinct)}
        axis.set_xticks(list(places.values()), [value_text(value) for value in distinct])
        axis.set_xlim(-0.5, len(distinct) - 0.5)
        return places
    numbers = sorted(float(value) for value in distinct)
    if fits_log(numbers):
        axis.set_xscale("log")
    if len(numbers) <= MOST_TICKS:
        axis.set_xticks(numbers, [value_text(number) for number in numbers])
        axis.set_xticks([], minor=True)
    return {value: float(value) for value in distinct}


def compute_axis(axis: "Axes", values: Sequence[float]) -> None:
    """Make the x axis one of FLOPs, for these values, with as many labels as have room."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

    low, high = min(values), max(values)
    axis.set_xlabel(COMPUTE_LABEL)
    if high > LOG_FROM * low:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
    if high <= POWERS_FROM * low:
        locator = FixedLocator(round_values(low, high)) if high > LOG_FROM * low else MaxNLocator(4)
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))


def round_values(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two values."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**exponent for exponent in powers for digit in (1, 2, 5)]
    return [value for value in found if low <= value <= high]


def add_legend(figure: "Figure", handles: Sequence[Any], names: Sequence[str]) -> None:
    """Name what is drawn: beside the panels, or below them where long names would narrow them."""
    if len(names) <= MOST_BELOW and max(map(len, names)) > LONG_NAME:
        figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    else:
        figure.legend(handles, names, loc="outside right upper", frameon=False)


def cycled(choices: Sequence[str], number: int) -> list[str]:
    """As many as are needed, from the first again after the last."""
    return [choices[i % len(choices)] for i in range(number)]
