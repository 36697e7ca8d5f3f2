"""Scaling laws on a page: plots, sentences, warnings, CSV and JSON."""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image
from scaling_tools import BUDGETS, CHINCHILLA, Law, laws_of_seed, noisy_points

from nanochat_core.report.sweeps.isoflop import RATIO, Estimate, Interval, Laws, fit_laws
from nanochat_core.report.sweeps.law_checks import warnings_of
from nanochat_core.report.sweeps.law_plots import draw_laws, isoflop_plot, optimum_plot
from nanochat_core.report.sweeps.law_text import (
    laws_csv,
    laws_markdown,
    laws_values,
    prediction_lines,
    said,
    shown,
)


def clear() -> Laws:
    """Points with so little noise that everything is told."""
    return laws_of_seed(0.003, 0)


def sizes_left(laws: Laws, kept: tuple[int, ...], budgets: int = 5) -> Laws:
    """The same with some of the seven sizes, at some of the budgets."""
    return fit_laws([p for b in laws.budgets[:budgets] for p in (b.points[i] for i in kept)])


@pytest.mark.e2e
def test_two_plots_are_drawn_also_of_intervals_without_end(tmp_path: Path) -> None:
    plots = draw_laws(laws_of_seed(0.03, 0), tmp_path)
    assert plots == {
        "isoflop.png": "Bits per byte at equal compute",
        "optimum.png": "Best size against compute",
    }
    for name in plots:
        with Image.open(tmp_path / name) as image:
            assert image.size == (900, 360)


def test_the_same_points_give_the_same_bytes(tmp_path: Path) -> None:
    laws = fit_laws(noisy_points(0.003, 0, budgets=BUDGETS[:1]))
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        draw_laws(laws, folder)
    assert (first / "isoflop.png").read_bytes() == (second / "isoflop.png").read_bytes()


def test_isoflop_curves_have_every_point_and_one_name_a_budget() -> None:
    figure = isoflop_plot(clear())
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [7] * 5
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [f"{flops:.3g} FLOPs" for flops in BUDGETS] + ["best, with its 95 %"]


def test_optima_stand_on_the_law_of_all_points() -> None:
    figure = optimum_plot(clear())
    sizes, _, ratios = figure.axes
    assert sizes.get_title(loc="left").startswith("N ~ C^0.4")
    (law,) = [line for line in ratios.lines if line.get_label() == "by all points"]
    best = [CHINCHILLA.best(float(flops))[RATIO] for flops in law.get_xdata()]
    assert list(law.get_ydata()) == pytest.approx(best, rel=0.15)
    assert len([line for line in ratios.lines if line.get_marker() == "D"]) == 5


def test_an_interval_without_end_is_an_arrow_at_the_border() -> None:
    laws = laws_of_seed(0.03, 0)
    own = [estimate for estimate in laws.curves[RATIO].optima.values() if estimate]
    is_open = [e.interval is not None and math.isinf(e.interval.high) for e in own]
    assert any(is_open)
    for plot, marker in ((isoflop_plot, ">"), (optimum_plot, "^")):
        axis = plot(laws).axes[-1]
        arrows = [line for line in axis.lines if line.get_marker() == marker]
        assert len(arrows) >= sum(is_open)


def test_one_budget_has_its_curve_and_no_law(tmp_path: Path) -> None:
    laws = fit_laws(noisy_points(0.003, 0, budgets=BUDGETS[:1]))
    assert list(draw_laws(laws, tmp_path)) == ["isoflop.png"]
    text = "\n".join(laws_markdown(laws))
    assert "One budget says nothing of how the best size grows" in text
    assert "Best at a compute" not in text


def test_two_points_have_no_plots_and_say_what_to_add(tmp_path: Path) -> None:
    laws = fit_laws(noisy_points(0.003, 0, budgets=BUDGETS[:1])[:2])
    assert draw_laws(laws, tmp_path) == {}
    assert "No budget has the 3 sizes that a valley takes" in "\n".join(laws_markdown(laws))
    json.dumps(laws_values(laws), allow_nan=False)


def test_the_page_names_ratio_exponents_and_a_prediction_that_extrapolates() -> None:
    laws = clear()
    page = "\n".join(laws_markdown(laws))
    assert laws.joint is not None
    assert f"**{said(laws.joint.middle[RATIO])} tokens per parameter**" in page
    assert "parameters N ~ C^x with x = 0.4" in page
    assert "At 1e+22 FLOPs: N " in page
    assert "extrapolates by a factor of 10 from what was measured (1e+18 to 1e+21)" in page


def test_a_prediction_inside_the_budgets_has_no_warning() -> None:
    (line,) = prediction_lines(clear(), 1e20)
    assert "extrapolates" not in line
    assert line.startswith("At 1e+20 FLOPs: N ")


def test_a_law_that_was_measured_well_is_warned_of_its_changing_ratio_only() -> None:
    assert [sentence.split(":")[0] for sentence in warnings_of(clear())] == [
        "The best tokens per parameter change with compute"
    ]


def test_a_bottom_outside_the_sizes_is_said_to_be_extrapolated() -> None:
    said_of = warnings_of(sizes_left(clear(), (3, 4, 5, 6)))
    assert sum("outside the measured sizes" in sentence for sentence in said_of) >= 3
    assert any("add smaller depths" in sentence for sentence in said_of)


@pytest.mark.parametrize(("seed", "is_far"), [(1, True), (2, False)])
def test_a_best_size_by_all_points_outside_the_sizes_is_warned_of(seed: int, is_far: bool) -> None:
    """Bits per byte that fall with tokens alone; at seed 1 the fit puts the best size far away."""
    law = Law(constant=1.0, by_size=0.0, by_tokens=500.0, beta=0.3)
    laws = fit_laws(noisy_points(0.01, seed, budgets=BUDGETS[:3], law=law))
    found = [s for s in warnings_of(laws) if "the best size by all points is" in s]
    assert found
    assert all("add smaller depths" in sentence for sentence in found)
    page = "\n".join([*laws_markdown(laws), *prediction_lines(laws, 1e21)])
    assert "(inf or more)" not in page
    assert "(0 or less)" not in page
    assert ("**not told tokens per parameter**" in page) == is_far
    assert ("N not told, D not told, D/N not told, and not told bits per byte" in page) == is_far
    assert any("far outside the measured sizes, so it is not told" in s for s in found) == is_far
    rows = [r for r in csv.DictReader(io.StringIO(laws_csv(laws))) if r["by"] == "all points"]
    numbers = [n for n in laws_values(laws)["numbers"] if n["by"] == "all points"]
    assert len(rows) == len(numbers) == 3 * (3 + 1)
    assert all((row["value"] == "") == is_far for row in rows)
    assert all((n["value"] is None) == (n["interval"] == [None, None]) == is_far for n in numbers)


@pytest.mark.parametrize("kind", ["equal", "hill"])
def test_a_law_of_which_only_the_floor_was_fitted_has_no_exponents(kind: str) -> None:
    points = noisy_points(0.0, 0)
    bpb = [1.25 if kind == "equal" else 9 / point.bpb for point in points]
    laws = fit_laws([dataclasses.replace(p, bpb=x) for p, x in zip(points, bpb, strict=True)])
    page = "\n".join(laws_markdown(laws))
    assert "**not told tokens per parameter**" in page
    assert "fitted to all points, with E = " in page
    assert ", a = " not in page
    values = json.loads(json.dumps(laws_values(laws), allow_nan=False))
    assert (values["surface"]["a"], values["surface"]["b"]) == (None, None)
    assert values["surface"]["E"] is not None
    assert "inf" in laws_csv(laws)
    assert any("so no best size is told" in sentence for sentence in warnings_of(laws))


def test_a_hill_is_told_and_has_no_best_size_in_the_table() -> None:
    points = noisy_points(0.0, 0)
    hill = [dataclasses.replace(p, bpb=9 / p.bpb) if p.budget == BUDGETS[0] else p for p in points]
    laws = fit_laws(hill)
    assert any("1e+18 FLOPs: bits per byte have no bottom" in s for s in warnings_of(laws))
    (row,) = [line for line in laws_markdown(laws) if line.startswith("| 1e+18 |")]
    assert row.split(" | ")[3] == "-"


def test_a_missing_point_is_named_when_budgets_share_their_sizes() -> None:
    points = noisy_points(0.003, 0, same_sizes=True)
    gone = points.pop(9)
    (sentence,) = [s for s in warnings_of(fit_laws(points)) if "no point with N" in s]
    assert f"N = {gone.scaling_parameters:,}, which others have" in sentence


def test_three_sizes_are_said_to_have_no_intervals() -> None:
    laws = sizes_left(clear(), (1, 3, 5))
    assert any("have no intervals" in sentence for sentence in warnings_of(laws))
    assert "(no interval)" in "\n".join(laws_markdown(laws))


def test_a_law_that_does_not_fit_is_doubted() -> None:
    points = [
        dataclasses.replace(p, bpb=p.bpb * 1.02) if p.budget == BUDGETS[2] else p
        for p in noisy_points(0.003, 0)
    ]
    assert any("fits these points worse than chance" in s for s in warnings_of(fit_laws(points)))


def test_csv_has_a_line_a_number_and_json_has_the_same() -> None:
    laws = laws_of_seed(0.03, 0)
    rows = list(csv.DictReader(io.StringIO(laws_csv(laws))))
    values = json.loads(json.dumps(laws_values(laws), allow_nan=False))
    assert len(rows) == len(values["numbers"]) == 3 * (5 + 5 + 1)
    for row, number in zip(rows, values["numbers"], strict=True):
        assert (float(row["value"]) if row["value"] else None) == number["value"]
        ends = (float(row["low"]), float(row["high"]))
        known = [end if end != 0 and math.isfinite(end) else None for end in ends]
        assert known == number["interval"]
    assert values["surface"]["degrees_of_freedom"] == 30
    assert values["warnings"] == warnings_of(laws)


def test_numbers_and_open_intervals_read_as_they_are() -> None:
    assert [shown(x) for x in (0.0123, 21.44, 2036.6, 43_900.0, 84.21e6, 1.31e9, 5.5e17)] == [
        "0.0123", "21.4", "2,037", "43.9k", "84.2M", "1.31B", "5.5e+17",
    ]  # fmt: skip
    assert said(None) == "-"
    assert said(Estimate(20.0, None)) == "20 (no interval)"
    assert said(Estimate(20.0, Interval(15.0, math.inf))) == "20 (15 or more)"
    assert said(Estimate(20.0, Interval(0.0, 25.0))) == "20 (25 or less)"
    assert said(Estimate(20.0, Interval(0.0, math.inf))) == "not told"
