"""The curves of all points of a sweep: validation over steps and over compute."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from nanochat_core.report.figures import new_figure
from nanochat_core.report.material import Series
from nanochat_core.report.plots import FEW_POINTS
from nanochat_core.report.sweeps.drawing import (
    BPB_LABEL,
    COMPUTE_LABEL,
    MOST_NAMED,
    SAME_COMPUTE,
    STYLES,
    LineStyle,
    add_legend,
    compute_axis,
    is_numeric,
    ordered_colors,
)
from nanochat_core.report.sweeps.lines import distinct, split
from nanochat_core.report.sweeps.recipe import SweepRecipe, Value
from nanochat_core.report.sweeps.rows import PointRow
from nanochat_core.report.sweeps.table import short_name, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curves_plot(
    rows: Sequence[PointRow], curves: Sequence[Series], recipe: SweepRecipe
) -> "Figure":
    """Validation over steps and, where steps cost differently, over FLOPs.

    The colour tells the value on the x axis of the other plots, the style of line the rest.
    """
    x, lines = split(rows, recipe)
    named = sorted_values(distinct(rows, x)) if x else []
    colors = dict(zip(named, ordered_colors(max(len(named), 1)), strict=False))
    styles = dict(zip([name for name, _ in lines], STYLES, strict=False))
    if len(lines) > len(styles):
        # More than there are styles: better none than one for two.
        styles = {}
    style_of = {
        row.label: styles.get(name, STYLES[0]) for name, members in lines for row in members
    }
    units = _units(rows, recipe)
    figure, axes = new_figure(len(units))
    for axis, (label, cost) in zip(axes, units.items(), strict=True):
        reached = []
        for row, series in zip(rows, curves, strict=True):
            color = colors.get(row.values.get(x, ""), ordered_colors(1)[0])
            places = [step * cost(row) for step in series.steps]
            points = [(at, v) for at, v in zip(places, series.values, strict=True) if at]
            _curve(axis, points, color, style_of[row.label])
            reached += [at for at, _ in points]
        _label(axis, label, reached)
    axes[0].set_ylabel(BPB_LABEL)
    _name_curves(figure, colors, styles, x)
    return figure


Cost = Callable[[PointRow], float]


def _units(rows: Sequence[PointRow], recipe: SweepRecipe) -> dict[str, Cost]:
    """Along what curves are drawn, and how much of it a step of a point is."""

    def flops(row: PointRow) -> float:
        return row.flops / row.steps

    costs = [flops(row) for row in rows]
    if recipe.kind == "scaling_laws":
        # Steps of one budget are a hundred times more at one depth than at another.
        return {COMPUTE_LABEL: flops}
    steps: dict[str, Cost] = {"step": lambda _: 1.0}
    return steps | ({COMPUTE_LABEL: flops} if max(costs) > SAME_COMPUTE * min(costs) else {})


def sorted_values(values: Sequence[Value]) -> list[Value]:
    """Numbers in their order; anything else in the order in which it was asked for."""
    return sorted(values, key=float) if is_numeric(values) else list(values)


def _curve(
    axis: "Axes", points: Sequence[tuple[float, float]], color: str, style: LineStyle
) -> None:
    marker = "o" if len(points) < FEW_POINTS else ""
    places, heights = [x for x, _ in points], [y for _, y in points]
    axis.plot(places, heights, style, color=color, marker=marker, markersize=3, linewidth=1.4)


def _label(axis: "Axes", label: str, reached: Sequence[float]) -> None:
    if label == COMPUTE_LABEL:
        compute_axis(axis, reached)
        return
    axis.set_xlabel(label)
    axis.set_xlim(left=0)
    axis.locator_params(axis="x", nbins=6)
    axis.xaxis.set_major_formatter("{x:,.0f}")


def _name_curves(
    figure: "Figure", colors: Mapping[Value, str], styles: Mapping[str, LineStyle], x: str
) -> None:
    from matplotlib.lines import Line2D

    shown = list(colors.items())[:: -(-len(colors) // MOST_NAMED) or 1]
    if len(shown) < 2:
        return
    handles = [Line2D([], [], color=color) for _, color in shown]
    names = [f"{short_name(x)} {value_text(value)}" for value, _ in shown]
    if len(styles) > 1:
        handles += [Line2D([], [], color="black", linestyle=style) for style in styles.values()]
        names += list(styles)
    add_legend(figure, handles, names)
