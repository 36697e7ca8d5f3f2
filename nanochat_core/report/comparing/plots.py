"""Plots of a comparison: final numbers with their scatter, and curves with the noise band."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_core.report.comparing.budgets import Band, gain_band, side_band
from nanochat_core.report.comparing.noise import ALPHA, Sample, quantile
from nanochat_core.report.comparing.sides import Axis, Comparison, Side
from nanochat_core.report.figures import BLUE, GREEN, GREY, ORANGE, blank_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The other colours of Okabe and Ito.
COLORS = (GREY, BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000")
FINAL_PLOT = "final.png"
CURVE_PLOTS: dict[Axis, tuple[str, str]] = {
    "steps": ("by_step.png", "step"),
    "flops": ("by_flops.png", "training FLOPs"),
    "seconds": ("by_time.png", "time in training steps / s"),
}
TITLES = {
    FINAL_PLOT: "Final numbers, one dot a run",
    "by_step.png": "Against steps",
    "by_flops.png": "Against FLOPs",
    "by_time.png": "Against time",
}
FEW_PLACES = 25
EARLY_SHARE = 0.25
"""Of the axis: what is before it, the steep fall from chance, does not decide the heights shown."""
LONGEST_NAME = 34


def draw_comparison(comparison: Comparison, folder: Path) -> list[str]:
    """Write every plot that there is data for; returns their names."""
    figures = {FINAL_PLOT: final_figure(comparison)}
    for axis, (name, _) in CURVE_PLOTS.items():
        figures[name] = curve_figure(comparison, axis)
    for name, figure in figures.items():
        (folder / name).unlink(missing_ok=True)  # of another comparison, perhaps
        if figure is not None:
            save_figure(figure, folder / name)
    return [name for name, figure in figures.items() if figure is not None]


def final_figure(comparison: Comparison) -> "Figure | None":
    """A row a side: a dot a run, and the mean with its 95 % interval where it is repeated."""
    figure = blank_figure(1.4 + 0.45 * len(comparison.sides))
    axis = figure.subplots()
    _tidy(axis, "x")
    for row, (side, color) in enumerate(_colored(comparison.sides)):
        finals = side.finals
        axis.plot(finals, [row] * len(finals), "o", color=color, alpha=0.7, markersize=6)
        sample = Sample.of(finals)
        if sample.spread is not None:
            reach = quantile(1 - ALPHA / 2, sample.spread.dof) * sample.spread.sd
            axis.errorbar(
                sample.mean,
                row + 0.22,
                xerr=reach / sample.count**0.5,
                fmt="|",
                markersize=10,
                color="black",
                capsize=3,
                linewidth=1,
            )
    axis.set_yticks(range(len(comparison.sides)), [_label(side) for side in comparison.sides])
    axis.set_ylim(len(comparison.sides) - 0.5, -0.5)
    which = "less" if comparison.metric.is_less_better else "more"
    axis.set_xlabel(f"{comparison.metric.title} ({which} is better); bars: mean and 95 % interval")
    axis.ticklabel_format(axis="x", useOffset=False)
    return figure


def curve_figure(comparison: Comparison, axis: Axis) -> "Figure | None":
    """Left the curves, right the gain over the first side, both with their bands."""
    bands = [side_band(side, axis) for side in comparison.sides]
    if not any(band.places for band in bands):
        return None
    figure = blank_figure(3.9)
    has_gains = len(comparison.sides) > 1
    panels: Any = figure.subplots(1, 2 if has_gains else 1, squeeze=False)
    title = CURVE_PLOTS[axis][1]
    _curves(panels[0][0], comparison, bands, title)
    if has_gains:
        _gains(panels[0][1], comparison, axis, title)
    return figure


def _curves(axis: "Axes", comparison: Comparison, bands: Sequence[Band], title: str) -> None:
    _tidy(axis, "y")
    has_few = _has_few(bands)
    for band, (side, color) in zip(bands, _colored(comparison.sides), strict=True):
        if band.places:
            _line(axis, band, color, _label(side), has_few)
    shown = [mean for band in bands for mean in _late(band, band.means)]
    margin = 0.05 * (max(shown) - min(shown))
    if margin and comparison.metric.is_less_better:
        # So that curves can be told apart where learning has slowed down.
        axis.set_ylim(min(shown) - margin, max(shown) + margin)
    axis.set_xlabel(title)
    axis.set_ylabel(f"{comparison.metric.title}; band: 1 sd of repeats")
    axis.legend(frameon=False, fontsize=8)


def _gains(axis: "Axes", comparison: Comparison, over: Axis, title: str) -> None:
    _tidy(axis, "y")
    axis.axhline(0, color="black", linewidth=1)
    others = list(_colored(comparison.sides))[1:]
    bands = [gain_band(comparison, side, over) for side, _ in others]
    has_few = _has_few(bands)
    gains, edges = [0.0], [0.0]
    for band, (side, color) in zip(bands, others, strict=True):
        if band.places:
            _line(axis, band, color, _label(side), has_few)
            gains += _late(band, band.means)
            edges += [*_late(band, band.low), *_late(band, band.high)]
    # Two repeats give intervals that would leave nothing to see of the lines.
    reach = 3 * max(map(abs, gains))
    if reach:
        low, high = (1.1 * pick(edges + gains) for pick in (min, max))
        axis.set_ylim(max(-reach, low), min(reach, high))
    axis.set_xlabel(title)
    axis.set_ylabel(f"better than {comparison.sides[0].letter} by; band: 95 % interval")


def _line(axis: "Axes", band: Band, color: str, label: str, has_few: bool) -> None:
    marker = "o" if has_few else ""
    axis.plot(band.places, band.means, color=color, marker=marker, markersize=3, label=label)
    if band.low:
        axis.fill_between(band.places, band.low, band.high, color=color, alpha=0.25, linewidth=0)


def _has_few(bands: Sequence[Band]) -> bool:
    return max(len(band.places) for band in bands) <= FEW_PLACES


def _late(band: Band, values: Sequence[float]) -> list[float]:
    """Those of the later part of the axis; none of a band without them."""
    if not values:
        return []
    start = EARLY_SHARE * band.places[-1]
    return [each for place, each in zip(band.places, values, strict=True) if place >= start]


def _colored(sides: Sequence[Side]) -> "list[tuple[Side, str]]":
    return [(side, COLORS[i % len(COLORS)]) for i, side in enumerate(sides)]


def _label(side: Side) -> str:
    # Matplotlib takes what stands between two dollar signs for a formula.
    label = side.label.replace("$", r"\$")
    return label if len(label) <= LONGEST_NAME else f"{label[: LONGEST_NAME - 1]}…"


def _tidy(axis: "Axes", grid: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#e0e0e0", linewidth=0.8)
    axis.set_axisbelow(True)
