"""The page of a comparison: curves at equal budgets, plots that are there, numbers with sources."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from comparing_tools import compared, curve, side
from markdown_it import MarkdownIt

from nanochat_core.report.comparing.budgets import (
    budgets,
    gain_band,
    side_band,
    spent_to_draw_level,
)
from nanochat_core.report.comparing.page import (
    Judged,
    budget_rows,
    level_words,
    summary_rows,
    write_comparison,
)
from nanochat_core.report.comparing.sides import Curve, Side, read_curve

METRICS = [
    {"step": 0, "val/bpb": 3.0},
    {"step": 10, "total_training_time": 2.0, "total_training_flops": 1000, "train/loss": 4.0},
    {"step": 15, "val/bpb": 2.5},
    {"step": 20, "total_training_time": 3.0, "total_training_flops": 2000, "train/loss": 3.0},
    {"step": 20, "val/bpb": float("nan")},
    {"step": 30, "total_training_time": 5.0, "total_training_flops": 3000, "train/loss": 2.0},
    {"step": 30, "val/bpb": 2.0},
]


def test_a_curve_has_what_was_spent_until_each_of_its_values() -> None:
    text = "".join(json.dumps(line) + "\n" for line in METRICS)
    found = read_curve(text, "val/bpb")
    assert found == Curve((0, 15, 30), (0, 1500, 3000), (0, 2.5, 5), (3.0, 2.5, 2.0))
    assert read_curve(text, "core_metric") == Curve()
    assert read_curve("", "val/bpb") == Curve()


def test_values_between_two_measurements_lie_on_the_line_between_them() -> None:
    found = Curve((10, 20), (100, 200), (1, 3), (4.0, 2.0))
    assert found.at("steps", 15) == 3.0
    assert found.at("flops", 200) == 2.0
    assert found.at("seconds", 1.5) == 3.5
    assert found.at("steps", 9) is None
    assert found.at("steps", 21) is None


def test_sides_are_held_against_each_other_at_what_all_of_them_have_spent() -> None:
    # B takes half the time for a step: at equal time it is ahead, and level early.
    comparison = compared(side("A", [1.5, 1.502]), side("B", [1.5, 1.502], pace=0.05))
    found = {budget.axis: budget for budget in budgets(comparison)}
    assert (found["steps"].amount, found["flops"].amount, found["seconds"].amount) == (
        400,
        4e11,
        20,
    )
    at_time = found["seconds"].samples
    assert at_time["A"].mean > at_time["B"].mean + 0.2
    other = comparison.sides[1]
    assert spent_to_draw_level(comparison, other, "seconds") == pytest.approx(0.5)
    assert spent_to_draw_level(comparison, other, "steps") == pytest.approx(1.0)
    assert (
        spent_to_draw_level(compared(side("A", [1.5]), side("B", [1.6])), side("B", [1.6]), "steps")
        is None
    )


def test_bands_are_there_where_repeats_are() -> None:
    comparison = compared(side("A", [1.5, 1.6]), side("B", [1.4]))
    first, other = (side_band(each, "steps") for each in comparison.sides)
    assert first.means[-1] == pytest.approx(1.55)
    assert first.high[-1] - first.means[-1] == pytest.approx(0.0707, abs=1e-4)
    assert (other.means[-1], other.low) == (1.4, ())
    gain = gain_band(comparison, comparison.sides[1], "steps")
    assert gain.means[-1] == pytest.approx(0.15)
    assert gain.low[-1] < 0 < gain.high[-1]
    assert (
        gain_band(compared(side("A", [1.5]), side("B", [1.4])), side("B", [1.4]), "steps").low == ()
    )


def test_curves_of_different_lengths_are_compared_as_far_as_both_go() -> None:
    one, other = side("A", [1.5]), side("B", [1.4])
    short = curve(1.5, steps=(0.0, 50.0, 150.0))
    one = replace(one, repeats=(replace(one.repeats[0], curve=short),))
    found = {budget.axis: budget.amount for budget in budgets(compared(one, other))}
    assert found["steps"] == 150


def written(folder: Path, *sides: Side) -> tuple[Judged, list[str]]:
    names = ("base", "idea | *one*", "$x_1$")
    named = [replace(each, name=name) for each, name in zip(sides, names, strict=True)]
    judged = Judged.of(compared(*named))
    return judged, write_comparison(judged, folder)


def three_sides() -> list[Side]:
    return [side("A", [1.50, 1.51, 1.49]), side("B", [1.40, 1.41]), side("C", [1.3])]


def without_curve(one: Side) -> Side:
    return replace(one, repeats=tuple(replace(each, curve=Curve()) for each in one.repeats))


def rendered(folder: Path) -> str:
    return MarkdownIt("commonmark").enable("table").render((folder / "compare.md").read_text())


@pytest.mark.e2e
def test_curves_are_drawn_along_steps_compute_and_time(tmp_path: Path) -> None:
    _, names = written(tmp_path, *three_sides())
    assert set(names) == {
        *("compare.md", "compare.json", "compare.csv"),
        *("final.png", "by_step.png", "by_flops.png", "by_time.png"),
    }
    assert all((tmp_path / name).stat().st_size for name in names)
    html = rendered(tmp_path)
    assert "<em>" not in html
    assert html.count("<table>") == 3


def test_a_page_json_and_csv_are_written(tmp_path: Path) -> None:
    judged, names = written(tmp_path / "new", *map(without_curve, three_sides()))
    assert names == ["compare.md", "compare.json", "compare.csv", "final.png"]
    page = (tmp_path / "new" / "compare.md").read_text()
    assert "<em>" not in rendered(tmp_path / "new")
    for each in judged.comparison.sides:
        for repeat in each.repeats:
            assert repeat.artifact in page
            assert repeat.measured_by in page.replace("\\_", "_")
    values = json.loads((tmp_path / "new" / "compare.json").read_text())
    assert [verdict["kind"] for verdict in values["verdicts"]] == ["better", "better"]
    assert values["sides"][0]["final"]["mean"] == pytest.approx(1.5)
    with (tmp_path / "new" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["bpb"] for row in rows] == ["1.5", "1.51", "1.49", "1.4", "1.41", "1.3"]
    assert rows[4]["model"] == "pretrain/B1"


def test_plots_of_an_earlier_comparison_do_not_stay(tmp_path: Path) -> None:
    for name in ("by_step.png", "others.png"):
        (tmp_path / name).touch()
    names = write_comparison(Judged.of(compared(without_curve(side("A", [1.5])))), tmp_path)
    assert names == ["compare.md", "compare.json", "compare.csv", "final.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["final.png", "others.png"]


def test_the_table_says_what_is_noise() -> None:
    rows = summary_rows(Judged.of(compared(side("A", [1.50, 1.52]), side("B", [1.51]))))
    head, first, other = rows
    assert head[3] == "better than A by"
    assert first[2:4] == ["1.5100 ± 0.0141", "-"]
    assert other[3] == "+0.0000 (noise)"


def test_a_second_table_has_the_numbers_at_equal_budgets() -> None:
    judged = Judged.of(compared(side("A", [1.50, 1.52]), side("B", [1.51], pace=0.05)))
    head, first, other = budget_rows(judged)
    assert head == ["bpb in training", "at 400 steps", "at 4e+11 FLOPs", "at 20 s"]
    assert first[1] == "1.5100 ± 0.0141"
    assert other[1] == "1.5100 (+0.0000)"
    assert level_words(judged)[0].startswith("B was as good as A came out after 100% of A's steps")
    assert budget_rows(Judged.of(compared(side("A", [1.50, 1.52])))) == []
