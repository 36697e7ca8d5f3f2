"""The page of a sweep and the files beside it."""

import base64
import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from sweep_points import (
    STEPS,
    Point,
    Published,
    isoflop_points,
    publish_points,
)

from nanochat_core.config.job import StageOutput
from nanochat_core.report.inlining import with_images
from nanochat_core.report.sweeps.isoflop import fit_laws
from nanochat_core.report.sweeps.law_text import laws_markdown, laws_values
from nanochat_core.report.sweeps.laws import LawPages, scaling_points
from nanochat_core.report.sweeps.page import (
    Sweep,
    page_lines,
    result_values,
    text_lines,
    write_sweep,
)
from nanochat_core.report.sweeps.recipe import input_name
from nanochat_core.report.sweeps.rows import read_rows

DEPTHS = tuple(
    Point({"depth": d}, 2.6 - d / 10, depth=d, steps=30 * d, seconds=60.0 * d) for d in (1, 2, 3)
)


@dataclass(frozen=True)
class Drawn:
    """A sweep that was written, plots and all."""

    folder: Path
    made: Published
    output: StageOutput


def write(made: Published, folder: Path) -> tuple[StageOutput, str]:
    folder.mkdir()
    output = write_sweep(made.manifests, made.folders, made.recipe, folder)
    return output, (folder / "sweep.md").read_text(encoding="utf-8")


def page_of(made: Published) -> str:
    """The page without its plots, which take their time."""
    rows = read_rows(made.manifests, made.folders, made.recipe)
    sweep = Sweep(made.recipe, made.manifests, rows)
    return "\n".join(page_lines(sweep, made=datetime.now(UTC)))


def headings(page: str) -> list[str]:
    return re.findall(r"^## (.+)$", page, flags=re.M)


@pytest.fixture(scope="module")
def miniseries(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """A miniseries of three depths, of which a fourth failed; written once."""
    folder = tmp_path_factory.mktemp("miniseries")
    made = publish_points(
        folder, DEPTHS, kind="miniseries", failed=("depth=4",), price_per_hour=3.0
    )
    output, _ = write(made, folder / "out")
    return Drawn(folder / "out", made, output)


def test_everything_is_a_file_of_the_artifact_and_only_scores_are_its_result(
    miniseries: Drawn,
) -> None:
    output = miniseries.output
    assert set(output.files) == {path.name for path in miniseries.folder.iterdir()}
    assert {name for name, role in output.files.items() if role == "result"} == {"sweep.json"}
    lowest = pytest.approx(2.3)
    assert output.metrics == {"points": 3, "failed": 1, "lowest val/bpb": lowest}


def test_the_page_has_results_plots_costs_and_lineage(
    miniseries: Drawn,
) -> None:
    folder, made = miniseries.folder, miniseries.made
    page = (folder / "sweep.md").read_text(encoding="utf-8")
    assert headings(page) == ["Results", "Plots", "Costs", "Lineage"]
    assert "3 points, 1 failed" in page
    assert "- failed: depth=4" in page
    for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page):
        assert (folder / name).is_file()
    for manifest in made.manifests.values():
        assert f"`{manifest.ref.short}`" in page
        assert f"`{manifest.digest[:12]}`" in page


def test_every_table_of_the_page_is_one_to_a_renderer(miniseries: Drawn) -> None:
    page = (miniseries.folder / "sweep.md").read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    assert sum(token.type == "table_open" for token in tokens) == 3


def test_costs_count_an_artifact_of_several_points_once(tmp_path: Path) -> None:
    points = [
        Point({"sft.lr_scale": lr}, 2.0, chat=0.4, model="base", seconds=3600) for lr in (1, 2)
    ]
    made = publish_points(tmp_path, points, price_per_hour=2.0)
    page = page_of(made)
    assert "| pretrain | 1 | 1 h 00 m | 2.00 |" in page
    assert "| chat_eval_sft | 2 | 2 h 00 m | 4.00 |" in page
    assert "| **all** |  | 4 h 00 m | 8.00 |" in page


def test_the_page_says_what_was_really_run_where_beginnings_are_shared(tmp_path: Path) -> None:
    # Horizons of 2 : 3 : 4 with 20 % decay: the last two start from one trunk, which goes on from
    # that of the first. 1.6 + 0.8 of trunks, and 0.4 + 0.6 + 0.8 of branches, of 9.
    points = [
        Point(
            {STEPS: steps},
            2.0,
            steps=steps,
            seconds=10.0,
            metrics={"total_training_time": float(steps)},
            provenance={"started_from": f"pretrain/{start:064x}", "started_from_step": start},
        )
        for steps, start in ((200, 160), (300, 240), (400, 240))
    ]
    page = page_of(publish_points(tmp_path, points))
    assert "for 900 steps of pretraining 500 were run (56%)" in page
    assert "| pretrain | 3 | 30 s |" in page
    assert "| shared beginnings, their steps | - | 4 m 00 s |" in page
    assert "| **all** |  | 5 m 00 s |" in page
    assert f"began with the first 240 steps of `pretrain/{0:08x}`" in page


def test_a_beginning_that_is_a_point_of_the_table_is_counted_once(tmp_path: Path) -> None:
    # Each length goes on from the one before it, as without a warm-down: 40 steps in all.
    points: list[Point] = []
    begun: dict[str, object] = {}
    for steps in (20, 30, 40):
        time = {"total_training_time": float(steps)}
        point = Point({STEPS: steps}, 2.0, steps=steps, seconds=10.0, metrics=time)
        points.append(replace(point, provenance=begun))
        made = publish_points(tmp_path, points)
        longest = made.refs[input_name(len(points) - 1, "pretrain")]
        begun = {
            "started_from": f"pretrain/{longest.fingerprint}",
            "started_from_step": steps,
        }
    page = page_of(made)
    assert "for 90 steps of pretraining 40 were run (44%)" in page
    assert "shared beginnings, their steps" not in page
    assert "| **all** |  | 1 m 00 s |" in page
    # Without the first in the table, its steps are those of a beginning.
    page = page_of(publish_points(tmp_path, points[1:]))
    assert "for 70 steps of pretraining 40 were run (57%)" in page
    assert "| shared beginnings, their steps | - | 20 s |" in page


def test_what_the_times_of_points_leave_out_is_said(tmp_path: Path) -> None:
    begun = {"started_from": "pretrain/0123abcd", "started_from_step": 80}
    points = [Point({STEPS: n}, 2.0, steps=n, provenance=begun) for n in (100, 120)]
    said = "leave out shared steps"
    made = publish_points(tmp_path / "shared", points, price_per_hour=2.0)
    rows = read_rows(made.manifests, made.folders, made.recipe)
    assert f"Time and money {said}" in page_of(made)
    assert any(said in line for line in text_lines(Sweep(made.recipe, made.manifests, rows)))
    assert "out shared steps" not in page_of(publish_points(tmp_path / "apart", DEPTHS))


def test_the_price_is_said_to_be_of_one_point(tmp_path: Path) -> None:
    said = "The price is that of what one point uses (its GPUs)"
    assert said in page_of(publish_points(tmp_path, DEPTHS, price_per_hour=2.0))
    assert said not in page_of(publish_points(tmp_path, DEPTHS))


def test_beginnings_of_other_kinds_are_counted_each(tmp_path: Path) -> None:
    begun = {"started_from": "pretrain/0123abcd", "started_from_step": 80}
    points = [
        Point({"pretrain.seed": seed, STEPS: 100}, 2.0, steps=100, provenance=begun)
        for seed in (1, 2)
    ]
    assert "for 200 steps of pretraining 200 were run (100%)" in page_of(
        publish_points(tmp_path, points)
    )


def test_the_result_does_not_depend_on_times(tmp_path: Path) -> None:
    found = []
    for name, seconds, provenance in (("a", 10.0, {}), ("b", 99.0, {"started_from_step": 8})):
        points = [replace(p, seconds=seconds, provenance=provenance) for p in DEPTHS]
        made = publish_points(tmp_path / name, points)
        rows = read_rows(made.manifests, made.folders, made.recipe)
        found.append(json.dumps(result_values(Sweep(made.recipe, made.manifests, rows))))
    assert found[0] == found[1]
    first = json.loads(found[0])["points"][0]
    assert first["bpb"] == pytest.approx(2.5)
    assert set(first["artifacts"]) == {"pretrain", "base_eval"}


def test_other_held_out_text_is_said(tmp_path: Path) -> None:
    points = (DEPTHS[0], replace(DEPTHS[1], shards="1" * 64))
    page = page_of(publish_points(tmp_path, points))
    assert "Not all points were measured on the same held-out text" in page


def test_repeats_are_a_table_of_their_own(tmp_path: Path) -> None:
    points = [
        Point({"depth": d, "pretrain.seed": s}, 2.0 + s / 100, depth=d)
        for d in (1, 2)
        for s in (1, 2)
    ]
    page = page_of(publish_points(tmp_path, points, kind="miniseries"))
    assert "Over seeds" in page
    assert "by chance alone" not in page


def test_a_label_cannot_break_the_page(tmp_path: Path) -> None:
    nasty = "| x <script>alert(1)</script> ![a](b) `c`"
    points = [Point({"pretrain.window_pattern": nasty}, 2.0), Point({"w": "\n# head"}, 2.1)]
    made = publish_points(tmp_path, points, failed=(nasty,))
    _, page = write(made, tmp_path / "out")
    html = MarkdownIt("commonmark").enable("table").render(page)
    assert "<script>" not in html
    assert headings(page) == ["Results", "Plots", "Costs", "Lineage"]
    assert html.count("<h1>") == 1


def test_pictures_go_into_the_page(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    page = with_images("![A](a.png) ![B](b.png)", tmp_path, ["a.png", "table.csv"])
    inside = base64.b64encode(b"picture").decode("ascii")
    assert page == f"![A](data:image/png;base64,{inside}) ![B](b.png)"


def test_scaling_laws_are_in_the_page_the_text_and_the_result(tmp_path: Path) -> None:
    made = publish_points(tmp_path, isoflop_points(), kind="scaling_laws")
    rows = read_rows(made.manifests, made.folders, made.recipe)
    fitted = fit_laws(scaling_points(rows))
    laws = LawPages(laws_markdown(fitted), laws_values(fitted))
    sweep = Sweep(made.recipe, made.manifests, rows, laws=laws)
    page = "\n".join(page_lines(sweep, made=datetime.now(UTC)))
    assert headings(page) == ["Results", "Scaling laws", "Costs", "Lineage"]
    assert result_values(sweep)["scaling_laws"]["budgets"] == [1e12, 3e12, 1e13]
    said = text_lines(sweep)[14:]
    assert any("N ~ C^" in line for line in said)
    assert not any(mark in line for line in said for mark in ("**", "`", "|", "#"))


def test_points_that_were_not_evaluated_leave_the_fit_out(tmp_path: Path) -> None:
    made = publish_points(tmp_path, isoflop_points()[:2], kind="scaling_laws")
    for name in ("000-base_eval", "001-base_eval"):
        del made.manifests[name]
    _, page = write(made, tmp_path / "out")
    assert headings(page) == ["Results", "Plots", "Costs", "Lineage"]


def test_importing_the_page_loads_neither_scipy_nor_matplotlib_nor_torch() -> None:
    check = (
        "import sys, nanochat_core.report.sweeps.page, nanochat_core.report.sweeps.plots\n"
        "assert not {'scipy', 'matplotlib', 'torch'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
