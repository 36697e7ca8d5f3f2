"""The plots of scaling laws: isoFLOP curves, and the best size against compute."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanochat_core.report.figures import ORANGE, new_figure, save_figure
from nanochat_core.report.sweeps.drawing import (
    BPB_LABEL,
    COMPUTE_LABEL,
    ordered_colors,
)
from nanochat_core.report.sweeps.fits import Floats, Interval, Valley
from nanochat_core.report.sweeps.isoflop import (
    PARAMETERS,
    RATIO,
    TOKENS,
    Budget,
    Estimate,
    Laws,
)
from nanochat_core.report.sweeps.law_text import NOT_TOLD, decimals, shown
from nanochat_core.report.sweeps.table import power

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

LABELS = {
    RATIO: "tokens per parameter",
    PARAMETERS: "scaling parameters N",
    TOKENS: "tokens D",
}
SYMBOLS = {RATIO: "D/N", PARAMETERS: "N", TOKENS: "D"}
TICKS = ((0.8, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)), (1.3, (1.0, 2.0, 5.0)), (2.2, (1.0, 3.0)))
"""Where ticks are in a decade, by how many decades there are."""
CURVE_PLACES, BAND_PLACES = 120, 9
BEYOND = 0.12
"""How far the axes go beyond the measured places, as a share of their logarithm's range."""
BEST = "best, with its 95 %"
NO_END = 0.02
"""How far from the border the arrow of a bar without an end stops, as a share of the axis."""


def draw_laws(laws: Laws, folder: Path) -> dict[str, str]:
    """Write the plots that there is data for; returns their titles by file name."""
    figures: dict[str, tuple[str, Figure]] = {}
    if laws.curves:
        figures["isoflop.png"] = ("Bits per byte at equal compute", isoflop_plot(laws))
    if laws.joint:
        figures["optimum.png"] = ("Best size against compute", optimum_plot(laws))
    for name, (_, figure) in figures.items():
        save_figure(figure, folder / name)
    return {name: title for name, (title, _) in figures.items()}


def isoflop_plot(laws: Laws) -> "Figure":
    """Points and parabolas of every budget, with the bottoms and their intervals."""
    figure, axes = new_figure(2)
    colors = ordered_colors(len(laws.budgets))
    for axis, name in zip(axes, (PARAMETERS, RATIO), strict=True):
        axis.set_xscale("log")
        axis.set_xlim(*_limits([point.on(name) for point in laws.points]))
        _ticks(axis.xaxis, axis.get_xlim())
        for budget, color in zip(laws.budgets, colors, strict=True):
            _points(axis, budget, name, color)
            if valley := laws.curves[name].valleys.get(budget.flops):
                bottom = laws.curves[name].optima[budget.flops]
                _curve(axis, valley, budget.extent(name), bottom, color)
                if bottom:
                    _bottom(axis, valley, bottom, color)
        axis.set_xlabel(LABELS[name])
        _bpb_limits(axis, laws)
    axes[0].set_ylabel(BPB_LABEL)
    _names(figure, axes[0])
    return figure


def _limits(places: Sequence[float]) -> tuple[float, float]:
    low, high = math.log(min(places)), math.log(max(places))
    room = BEYOND * (high - low)
    return math.exp(low - room), math.exp(high + room)


def _points(axis: "Axes", budget: Budget, name: str, color: str) -> None:
    places = [point.on(name) for point in budget.points]
    heights = [point.bpb for point in budget.points]
    axis.plot(places, heights, "o", color=color, markersize=4.5, label=f"{budget.flops:.3g} FLOPs")


def _curve(
    axis: "Axes",
    valley: Valley,
    extent: tuple[float, float],
    bottom: Estimate | None,
    color: str,
) -> None:
    """Solid where it was measured; dotted on to a bottom that was not."""
    inside = np.geomspace(*extent, CURVE_PLACES)
    axis.plot(inside, _height(valley, inside), color=color, linewidth=1.5)
    borders = axis.get_xlim()
    if bottom and not extent[0] <= bottom.value <= extent[1]:
        start = extent[0] if bottom.value < extent[0] else extent[1]
        end = min(max(bottom.value, borders[0]), borders[1])
        outside = np.geomspace(start, end, CURVE_PLACES)
        axis.plot(outside, _height(valley, outside), ":", color=color, linewidth=1.5)


def _height(valley: Valley, places: Floats) -> Floats:
    """Bits per byte, of which the valley is the logarithm."""
    return np.asarray(np.exp(valley.at(np.log(places))))


def _bottom(axis: "Axes", valley: Valley, bottom: Estimate, color: str) -> None:
    """A diamond, and the interval; of a bottom beyond the border only the interval."""
    low, high = axis.get_xlim()
    seen = min(max(bottom.value, low), high)
    height = float(_height(valley, np.array([seen]))[0])
    if seen == bottom.value:
        look: dict[str, Any] = {"color": ORANGE, "markeredgecolor": "white", "markersize": 7}
        axis.plot([seen], [height], "D", zorder=5, label=BEST, **look)
    if bottom.interval:
        _bar(axis, bottom.interval, height, color)


def _bar(axis: "Axes", interval: Interval, height: float, color: str) -> None:
    """A horizontal bar; an arrow where it goes on beyond the border."""
    borders = axis.get_xlim()
    low, high = (min(max(end, borders[0]), borders[1]) for end in (interval.low, interval.high))
    look: dict[str, Any] = {"color": color, "zorder": 4}
    axis.plot([low, high], [height, height], linewidth=1.2, **look)
    for end, border, arrow in ((low, borders[0], "<"), (high, borders[1], ">")):
        axis.plot([_inside(end, borders)], [height], arrow if end == border else "|", **look)


def _bpb_limits(axis: "Axes", laws: Laws) -> None:
    """Room for the points; a parabola that leaves it is cut."""
    values = [point.bpb for point in laws.points]
    room = 0.08 * (max(values) - min(values)) or 0.01
    axis.set_ylim(min(values) - 1.5 * room, max(values) + room)


def _names(figure: "Figure", axis: "Axes") -> None:
    handles, names = axis.get_legend_handles_labels()
    # The diamonds of all budgets have one entry, after the budgets.
    once = dict(zip(names, handles, strict=True))
    ordered = sorted(once, key=lambda name: name == BEST)
    figure.legend(
        [once[name] for name in ordered], ordered, loc="outside right upper", frameon=False
    )


def optimum_plot(laws: Laws) -> "Figure":
    """Best parameters, tokens and their ratio against compute: by each budget, and by all."""
    assert laws.joint is not None, "a plot of a law that was not fitted"
    figure, axes = new_figure(3)
    spent = [math.exp(budget.t) for budget in laws.budgets]
    compute = np.geomspace(*_limits(spent), BAND_PLACES)
    found = [prediction.best for c in compute if (prediction := laws.predict(float(c)))]
    for axis, name in zip(axes, (PARAMETERS, TOKENS, RATIO), strict=True):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(compute[0], compute[-1])
        axis.set_ylim(*_heights(laws, name, [best[name] for best in found]))
        _ticks(axis.yaxis, axis.get_ylim())
        _budget_ticks(axis.xaxis, spent)
        _band(axis, compute, [best[name] for best in found])
        for budget in laws.budgets:
            if laws.curves and (own := laws.curves[name].optima.get(budget.flops)):
                _optimum(axis, math.exp(budget.t), own)
        axis.set_xlabel(COMPUTE_LABEL)
        axis.set_title(_title(name, laws.joint.exponents[name]), loc="left", fontsize=9)
        axis.set_ylabel(f"best {LABELS[name]}")
    handles, names = axes[0].get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    figure.legend(
        list(once.values()), list(once), loc="outside lower center", ncols=3, frameon=False
    )
    return figure


def _heights(laws: Laws, name: str, band: Sequence[Estimate]) -> tuple[float, float]:
    """Room for the band, the bottoms and their bars, but not beyond what was measured."""
    own = laws.curves[name].optima.values() if laws.curves else ()
    everything = [*band, *(estimate for estimate in own if estimate)]
    ends = [end for e in everything for end in (e.value, *_ends(e.interval))]
    low, high = _limits([point.on(name) for point in laws.points])
    return _limits([min(max(end, low), high) for end in ends])


def _ends(interval: Interval | None) -> tuple[float, ...]:
    return (interval.low, interval.high) if interval else ()


def _ticks(axis: "Axis", limits: tuple[float, float]) -> None:
    """Numbers as the page has them, as many as there is room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(limits[1] / limits[0])
    between = next((subs for most, subs in TICKS if decades < most), (1.0,))
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter(FuncFormatter(lambda number, _: shown(number)))
    axis.set_minor_formatter(NullFormatter())


def _budget_ticks(axis: "Axis", budgets: Sequence[float]) -> None:
    """The first, the middle and the last budget: a narrow panel has room for three."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    ordered = sorted(set(budgets))
    named = {0, (len(ordered) - 1) // 2, len(ordered) - 1}
    axis.set_major_locator(FixedLocator([ordered[i] for i in sorted(named)]))
    axis.set_major_formatter(FuncFormatter(lambda flops, _: power(flops)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _title(name: str, exponent: Estimate) -> str:
    number = decimals(exponent, 2)
    return f"{SYMBOLS[name]}: {number}" if number == NOT_TOLD else f"{SYMBOLS[name]} ~ C^{number}"


def _band(axis: "Axes", compute: Floats, best: Sequence[Estimate]) -> None:
    """The law and its interval, cut at the borders."""
    axis.plot(compute, [e.value for e in best], color=ORANGE, label="by all points")
    low, high = axis.get_ylim()
    ends = [estimate.interval for estimate in best if estimate.interval]
    if len(ends) == len(best):
        lows, highs = ([min(max(e, low), high) for e in side] for side in _sides(ends))
        band: dict[str, Any] = {"color": ORANGE, "alpha": 0.18, "linewidth": 0}
        axis.fill_between(compute, lows, highs, label="95 % of it", **band)


def _sides(ends: Sequence[Interval]) -> tuple[list[float], list[float]]:
    return [interval.low for interval in ends], [interval.high for interval in ends]


def _optimum(axis: "Axes", flops: float, own: Estimate) -> None:
    """The bottom of one budget and its bar, with an arrow where it goes on beyond the border."""
    borders = axis.get_ylim()
    look: dict[str, Any] = {"color": "black", "zorder": 4}
    if own.interval:
        low, high = (
            min(max(end, borders[0]), borders[1]) for end in (own.interval.low, own.interval.high)
        )
        axis.plot([flops, flops], [low, high], linewidth=1.2, **look)
        for end, border, arrow in ((low, borders[0], "v"), (high, borders[1], "^")):
            axis.plot([flops], [_inside(end, borders)], arrow if end == border else "_", **look)
    if borders[0] <= own.value <= borders[1]:
        axis.plot([flops], [own.value], "D", markersize=5, label="by its own points", **look)


def _inside(place: float, borders: tuple[float, float]) -> float:
    """A place moved off the borders, so that an arrow there is seen whole."""
    room = math.exp(NO_END * math.log(borders[1] / borders[0]))
    return min(max(place, borders[0] * room), borders[1] / room)
