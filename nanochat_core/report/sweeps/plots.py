"""The plots of a sweep: results against what was varied and against compute, and curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat_core.report.figures import GREY, new_figure, save_figure
from nanochat_core.report.material import Series
from nanochat_core.report.sweeps.curves import curves_plot
from nanochat_core.report.sweeps.drawing import (
    BPB_LABEL,
    MARKERS,
    MOST_NAMED,
    SAME_COMPUTE,
    add_legend,
    compute_axis,
    cycled,
    is_numeric,
    ordered_colors,
    value_axis,
)
from nanochat_core.report.sweeps.lines import Line, split
from nanochat_core.report.sweeps.recipe import SweepRecipe
from nanochat_core.report.sweeps.repeats import Average, Measure, average, is_seed
from nanochat_core.report.sweeps.rows import PointRow
from nanochat_core.report.sweeps.table import (
    BASE_SCORE,
    CHAT_SCORE,
    chat_title,
    score_title,
    short_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """One result, as the height of points."""

    label: str
    measure: Measure
    error: Measure


def draw_plots(
    rows: Sequence[PointRow], curves: Sequence[Series], recipe: SweepRecipe, folder: Path
) -> dict[str, str]:
    """Write every plot that there is data for; returns its title by file name.

    `curves` are validation bits per byte over steps, one for each row.
    """
    panels = result_panels(rows)
    figures: dict[str, tuple[str, Figure]] = {}
    if recipe.kind != "scaling_laws" and panels:
        x, lines = split(rows, recipe)
        if x:
            title = f"Results against {short_name(x)}"
            figures["results.png"] = (title, results_plot(panels, x, lines))
        if compute_differs(rows):
            figures["compute.png"] = ("Results against compute", compute_plot(panels, lines))
    if any(len(series) > 1 for series in curves) and not has_one_model(rows):
        figures["curves.png"] = ("Validation during pretraining", curves_plot(rows, curves, recipe))
    for name, (_, figure) in figures.items():
        save_figure(figure, folder / name)
    return {name: title for name, (title, _) in figures.items()}


def result_panels(rows: Sequence[PointRow]) -> list[Panel]:
    """What was measured of these points; of one base model under many chat models only theirs."""
    panels = [
        Panel(BPB_LABEL, lambda row: row.bpb, lambda _: None),
        Panel(_axis_label(score_title(rows)), lambda row: row.score, lambda row: row.score_stderr),
    ]
    if has_one_model(rows):
        panels = []
    panels.append(
        Panel(
            _axis_label(chat_title(rows)),
            lambda row: row.chat_score,
            lambda row: row.chat_score_stderr,
        )
    )
    return [panel for panel in panels if any(panel.measure(row) is not None for row in rows)]


def has_one_model(rows: Sequence[PointRow]) -> bool:
    """Whether all of several points have the same pretrained model."""
    return len(rows) > 1 and len({row.refs["pretrain"] for row in rows}) == 1


def _axis_label(title: str) -> str:
    return {
        BASE_SCORE: "score: mean of tasks, centered",
        CHAT_SCORE: "score of the chat model",
    }.get(title, title)


def compute_differs(rows: Sequence[PointRow]) -> bool:
    """Whether points took enough different compute for an axis of it."""
    flops = [row.flops for row in rows]
    return max(flops) > SAME_COMPUTE * min(flops)


def results_plot(panels: Sequence[Panel], x: str, lines: Sequence[Line]) -> "Figure":
    """Each result against a varied field."""
    figure, axes = new_figure(len(panels))
    rows = [row for _, members in lines for row in members if x in row.values]
    values = [row.values[x] for row in rows]
    for axis, panel in zip(axes, panels, strict=True):
        on_axis = value_axis(axis, values, short_name(x))
        places = {row.label: on_axis[row.values[x]] for row in rows}
        _draw(axis, panel, lines, places, joined=is_numeric(values) and not is_seed(x))
        if is_seed(x) and (mean := average(rows, panel.measure)):
            _noise_band(axis, mean)
    _name_lines(figure, axes[0], lines)
    return figure


def _noise_band(axis: "Axes", mean: Average) -> None:
    """The mean of runs that differ by chance alone, and one standard deviation around it."""
    axis.axhline(mean.mean, color=GREY, linestyle="--", linewidth=1)
    if mean.deviation:
        low, high = mean.mean - mean.deviation, mean.mean + mean.deviation
        axis.axhspan(low, high, color=GREY, alpha=0.15, linewidth=0)


def compute_plot(panels: Sequence[Panel], lines: Sequence[Line]) -> "Figure":
    """Each result against the FLOPs of pretraining."""
    figure, axes = new_figure(len(panels))
    places = {row.label: row.flops for _, members in lines for row in members}
    for axis, panel in zip(axes, panels, strict=True):
        compute_axis(axis, list(places.values()))
        _draw(axis, panel, lines, places, joined=True)
    _name_lines(figure, axes[0], lines)
    return figure


def _draw(
    axis: "Axes",
    panel: Panel,
    lines: Sequence[Line],
    places: Mapping[str, float],
    *,
    joined: bool,
) -> None:
    """Points with their errors; a line joins the means of those in the same place."""
    for (name, members), color, marker in zip(
        lines, ordered_colors(len(lines)), cycled(MARKERS, len(lines)), strict=True
    ):
        points = _points(panel, members, places)
        axis.errorbar(
            [x for x, _, _ in points],
            [y for _, y, _ in points],
            yerr=[error for _, _, error in points] if any(e for _, _, e in points) else None,
            fmt=marker,
            color=color,
            markersize=5,
            capsize=3,
            elinewidth=1,
            label=name,
        )
        if joined:
            means = _means(points)
            axis.plot(list(means), list(means.values()), color=color, linewidth=1.5)
    axis.set_ylabel(panel.label)


def _points(
    panel: Panel, rows: Sequence[PointRow], places: Mapping[str, float]
) -> list[tuple[float, float, float]]:
    """Place, value and error of every point that has them, from left to right."""
    found = [(places.get(row.label), panel.measure(row), panel.error(row) or 0.0) for row in rows]
    return sorted((x, y, error) for x, y, error in found if x is not None and y is not None)


def _means(points: Sequence[tuple[float, float, float]]) -> dict[float, float]:
    heights: dict[float, list[float]] = {}
    for x, y, _ in points:
        heights.setdefault(x, []).append(y)
    return {x: sum(ys) / len(ys) for x, ys in heights.items()}


def _name_lines(figure: "Figure", axis: "Axes", lines: Sequence[Line]) -> None:
    if len(lines) > 1:
        handles, names = axis.get_legend_handles_labels()
        shown = slice(None, None, -(-len(names) // MOST_NAMED))
        add_legend(figure, handles[shown], names[shown])
