"""The plots of a sweep: which are drawn, along which axis, with which points."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sweep_points import Point, publish_points

from nanochat_core.report.sweeps.curves import curves_plot
from nanochat_core.report.sweeps.drawing import fits_log, ordered_colors, round_values
from nanochat_core.report.sweeps.lines import split
from nanochat_core.report.sweeps.plots import compute_plot, draw_plots, result_panels, results_plot
from nanochat_core.report.sweeps.rows import BPB, PointRow, point_material, read_rows

LR, SEED = "pretrain.optimizer.matrices.lr", "pretrain.seed"
DEPTHS = tuple(Point({"depth": d}, 2.6 - d / 10, depth=d, steps=30 * d) for d in (1, 2, 3))
RATES = tuple(Point({LR: lr}, bpb) for lr, bpb in ((0.01, 2.4), (0.02, 2.25), (0.04, 2.31)))


class Drawn:
    """A sweep that was published and drawn."""

    def __init__(self, folder: Path, points: tuple[Point, ...], kind: Any = "sweep") -> None:
        made = publish_points(folder, points, kind=kind)
        self.recipe = made.recipe
        self.rows: list[PointRow] = read_rows(made.manifests, made.folders, made.recipe)
        materials = [point_material(made.manifests, made.folders, i) for i in range(len(self.rows))]
        self.curves = [material.series("pretrain", BPB) for material in materials]
        self.folder = folder

    def plots(self) -> dict[str, str]:
        return draw_plots(self.rows, self.curves, self.recipe, self.folder)


def test_a_miniseries_is_drawn_against_depth_and_compute(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path, DEPTHS, kind="miniseries")
    # Every figure takes its time, and the curves are drawn below.
    drawn.curves = []
    plots = drawn.plots()
    assert plots == {
        "results.png": "Results against depth",
        "compute.png": "Results against compute",
    }
    for name in plots:
        with Image.open(tmp_path / name) as image:
            assert image.size == (900, 360)


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path, RATES)
    first = {name: (tmp_path / name).read_bytes() for name in drawn.plots()}
    assert {name: (tmp_path / name).read_bytes() for name in drawn.plots()} == first


def test_points_of_the_same_compute_are_not_drawn_against_it(tmp_path: Path) -> None:
    assert list(Drawn(tmp_path, RATES).plots()) == ["results.png", "curves.png"]


def test_rates_are_on_a_logarithmic_axis_and_have_a_tick_each(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path, RATES)
    x, lines = split(drawn.rows, drawn.recipe)
    axis = results_plot(result_panels(drawn.rows), x, lines).axes[0]
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.01", "0.02", "0.04"]
    assert axis.get_xlabel() == "optimizer.matrices.lr"


def test_of_two_fields_one_is_the_axis_and_the_other_a_line_each(tmp_path: Path) -> None:
    points = tuple(Point({LR: lr, "w": w}, 2.0) for lr in (0.01, 0.02, 0.04) for w in ("L", "SSSL"))
    drawn = Drawn(tmp_path, points)
    x, lines = split(drawn.rows, drawn.recipe)
    assert x == LR
    assert [(name, len(members)) for name, members in lines] == [("w L", 3), ("w SSSL", 3)]


def test_repeats_are_points_of_one_line_through_their_mean(tmp_path: Path) -> None:
    points = tuple(
        Point({LR: lr, SEED: seed}, 2.0 + seed / 10) for lr in (0.01, 0.02) for seed in (1, 2, 3)
    )
    drawn = Drawn(tmp_path, points)
    x, lines = split(drawn.rows, drawn.recipe)
    assert (x, len(lines)) == (LR, 1)
    axis = results_plot(result_panels(drawn.rows), x, lines).axes[0]
    means = [list(line.get_ydata()) for line in axis.lines if line.get_linestyle() == "-"]
    assert means == [[pytest.approx(2.2), pytest.approx(2.2)]]


def test_seeds_alone_are_points_without_a_line(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path, tuple(Point({SEED: seed}, 2.0 + seed / 10) for seed in (1, 2, 3)))
    x, lines = split(drawn.rows, drawn.recipe)
    axis = results_plot(result_panels(drawn.rows), x, lines).axes[0]
    assert x == SEED
    assert [line.get_linestyle() for line in axis.lines if len(line.get_xdata()) == 3] == ["None"]


def test_words_are_names_on_the_axis(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path, tuple(Point({"w": w}, 2.0) for w in ("SSSL", "L", "SL")))
    x, lines = split(drawn.rows, drawn.recipe)
    axis = results_plot(result_panels(drawn.rows), x, lines).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["SSSL", "L", "SL"]


def test_one_base_model_under_many_chat_models_is_not_drawn_again_and_again(
    tmp_path: Path,
) -> None:
    points = tuple(
        Point({"sft.lr_scale": lr}, 2.0, chat=0.4 + lr, model="base") for lr in (0.1, 0.2)
    )
    drawn = Drawn(tmp_path, points)
    assert [panel.label for panel in result_panels(drawn.rows)] == ["score of the chat model"]
    assert list(drawn.plots()) == ["results.png"]


def test_the_curves_of_a_scaling_sweep_take_their_colour_from_the_depth(tmp_path: Path) -> None:
    points = tuple(
        Point({"pretrain.target_flops": flops, "depth": d}, 2.0, depth=d, steps=30 * steps)
        for flops, steps in ((1e12, 1), (3e12, 3))
        for d in (1, 2)
    )
    drawn = Drawn(tmp_path, points, kind="scaling_laws")
    figure = curves_plot(drawn.rows, drawn.curves, drawn.recipe)
    assert len(figure.axes) == 1
    lines = figure.axes[0].lines
    assert len(lines) == 4
    assert len({line.get_color() for line in lines}) == 2
    assert len({line.get_linestyle() for line in lines}) == 2
    assert "results.png" not in drawn.plots()


def test_many_points_are_drawn_without_a_name_for_each(tmp_path: Path) -> None:
    points = tuple(Point({"pretrain.target_param_data_ratio": float(i)}, 2.0) for i in range(1, 31))
    drawn = Drawn(tmp_path, points)
    figure = curves_plot(drawn.rows, drawn.curves, drawn.recipe)
    assert len(figure.legends[0].get_texts()) == 10


def test_one_point_has_its_curve(tmp_path: Path) -> None:
    assert Drawn(tmp_path, DEPTHS[:1]).plots() == {"curves.png": "Validation during pretraining"}


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ((0.01, 0.02, 0.04), True),
        ((1e12, 3e12, 1e13), True),
        ((1.0, 2.0, 3.0), False),
        ((4.0, 8.0, 12.0, 16.0), False),
        ((0.0, 0.1, 1.0), False),
        ((0.1, 0.2), False),
        ((0.001, 0.1), True),
        ((5.0,), False),
    ],
)
def test_an_axis_is_logarithmic_where_values_are_evenly_spaced_as_ratios(
    values: tuple[float, ...], is_log: bool
) -> None:
    assert fits_log(values) is is_log


def test_colours_of_an_order_are_all_different() -> None:
    for number in (1, 2, 4, 5, 12):
        assert len(set(ordered_colors(number))) == number


def test_labels_of_compute_are_round_and_inside_of_what_was_measured() -> None:
    assert round_values(1.2e9, 1.1e10) == [2e9, 5e9, 1e10]
    assert round_values(1e12, 1e12) == [1e12]


def test_little_difference_in_compute_is_drawn_on_an_even_axis(tmp_path: Path) -> None:
    points = tuple(Point({"n": n}, 2.0 + n / 10, steps=30 * n) for n in (2, 3, 4))
    drawn = Drawn(tmp_path, points)
    _, lines = split(drawn.rows, drawn.recipe)
    axis = compute_plot(result_panels(drawn.rows), lines).axes[0]
    assert axis.get_xscale() == "linear"
    assert 3 <= len([t for t in axis.get_xticks() if 1.4e10 < t < 3e10]) <= 5
