"""The report of a small line, written from artifacts that a real store published."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from report_tools import AFTER, BEFORE, CONTENTS, NASTY, make_material

from nanochat_core.config.job import StageOutput
from nanochat_core.conversation.markdown import escape
from nanochat_core.report.markdown import quoted, table
from nanochat_core.report.material import Material, StageRow
from nanochat_core.report.plots import PLOTS
from nanochat_core.report.recipe import ReportRecipe
from nanochat_core.report.writing import (
    report_lines,
    result_values,
    stage_lines,
    with_stages,
    write_report,
)


@dataclass(frozen=True)
class Whole:
    """A written report and what it was made of."""

    folder: Path
    material: Material
    page: str
    output: StageOutput


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The report of a whole line; written once, since plots take their time."""
    folder = tmp_path_factory.mktemp("whole")
    material = make_material(folder)
    output = write_report(material, ReportRecipe(), folder)
    return Whole(folder, material, (folder / "report.md").read_text(encoding="utf-8"), output)


def page_of(material: Material) -> str:
    """The page without its plots."""
    return "\n".join(report_lines(material, ReportRecipe(), {}, made=datetime.now(UTC)))


def headings(page: str) -> list[str]:
    return re.findall(r"^## (.+)$", page, flags=re.M)


def tables(page: str) -> list[list[list[str]]]:
    """Every table of the page as the reference renderer of GFM tables reads it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    found: list[list[list[str]]] = []
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            found[-1][-1].append(tokens[i + 1].content)
    return found


def test_a_whole_line_has_every_section_and_plot(whole: Whole) -> None:
    page, output = whole.page, whole.output
    names = ["Results", "Curves", "Samples", "Settings", "Stages", "Environment", "Lineage"]
    assert headings(page) == names
    assert output.files == {
        "report.json": "result",
        "report.md": "record",
        "pretrain.png": "record",
        "sft.png": "record",
        "rl.png": "record",
        "scores.png": "record",
    }
    assert output.metrics == {"sections": 7, "plots": 4}
    for name in output.files:
        assert (whole.folder / name).stat().st_size > 0
    assert "preset tiny, written by run 20260101-000000-abc123" in page
    assert "held-out loss 3.500 at step 0, 2.500 at step 10." in page
    assert "This run: 18 s in these stages. Making all of it: 18 s, of which training" in page


@pytest.mark.parametrize("missing", list(CONTENTS))
def test_without_a_station_only_what_it_tells_is_left_out(tmp_path: Path, missing: str) -> None:
    stations = tuple(name for name in CONTENTS if name != missing)
    material = make_material(tmp_path, stations=stations)
    page = page_of(material)
    plots = [name for name, (_, draw) in PLOTS.items() if draw(material) is not None]
    told = {
        "pretrain": ("pretrain.png" in plots, "| depth |" in page),
        "base_eval": ("bits per byte (less", "The base model goes on"),
        "sft": ("sft.png" in plots, "sft steps" in page),
        "chat_eval_sft": ("| after SFT |", "### Questions after SFT"),
        "rl": ("rl.png" in plots, "### Rollouts of RL"),
        "chat_eval_rl": ("| after RL |", "### Questions after RL"),
    }
    for station, signs in told.items():
        is_there = [sign if isinstance(sign, bool) else sign in page for sign in signs]
        assert is_there == [station != missing] * 2, station
    assert f"`{missing}/" not in re.sub(r"(?s)## Lineage.*", "", page)


def test_a_line_that_ended_early_has_a_report_too(tmp_path: Path) -> None:
    material = make_material(tmp_path, stations=("shards",))
    output = write_report(material, ReportRecipe(), tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert headings(page) == ["Stages", "Environment", "Lineage"]
    assert output.files == {"report.json": "result", "report.md": "record"}
    assert headings(page_of(Material({}, {}))) == []


def test_scores_before_and_after_stand_with_their_errors_and_the_paired_change(
    whole: Whole,
) -> None:
    rows = {row[0]: row[1:] for row in tables(whole.page)[0]}
    assert rows["score"] == ["base", "after SFT", "after RL", "through RL"]
    assert rows["validation, bits per byte (less is better)"][0] == "2.2000"
    assert rows["heldout\\_word"][0] == "0.500 ± 0.100 of 25"
    # 6 of 10 gained, none lost: mean 0.6, sample variance 10/9 * 0.24, over 10 problems.
    assert (BEFORE.count("y"), AFTER.count("y")) == (2, 8)
    assert rows["sums"] == ["-", "0.200 ± 0.126 of 10", "0.800 ± 0.126 of 10", "+0.600 ± 0.163"]
    assert rows["mean of the benchmarks, centered"][3] == "+0.000 ± 0.141 (noise)"


def test_every_table_is_whole_and_text_of_models_stays_text(whole: Whole) -> None:
    found = tables(whole.page)
    written = len(re.findall(r"^\| ---:? \|", whole.page, flags=re.M))
    assert len(found) == written == 6
    for rows in found:
        assert len(rows) > 1
        assert len({len(row) for row in rows}) == 1
        assert all(cell for row in rows[1:] for cell in row)
    parsed = Elements()
    parsed.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(whole.page))
    assert parsed.names.isdisjoint({"script", "a"})
    assert parsed.count("img") == 4
    assert parsed.count("h1") == 1
    assert parsed.text.count('<script>alert("1")</script>') == 7


class Elements(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] = []
        self.text = ""

    @property
    def names(self) -> set[str]:
        return set(self._names)

    def count(self, name: str) -> int:
        return self._names.count(name)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._names.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", [NASTY, "1. one", "- a", "> b", "```\ncode", "~~x~~ :a: #1 @me"])
def test_escaped_text_is_read_back_as_it_was_written(text: str) -> None:
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(f"x {escape(text)} x")
    parsed = Elements()
    parsed.feed(html)
    assert parsed.names == {"p"}
    shown = " ⏎ ".join(" ".join(line.split()) for line in text.splitlines())
    assert parsed.text.strip() == f"x {shown} x"


def test_a_long_text_is_cut_before_it_is_escaped() -> None:
    assert quoted("|" * 1000) == "\\|" * 399 + "…"
    assert quoted("  \n ") == "*(nothing)*"


def test_a_table_of_no_rows_is_nothing() -> None:
    assert table(("a", "b:"), []) == []
    assert table(("a", "b:"), [["1", "2"]]) == ["| a | b |", "| --- | ---: |", "| 1 | 2 |"]


def test_every_plot_is_an_image_with_ink_of_its_own_color(whole: Whole) -> None:
    blue = (0x00, 0x72, 0xB2)
    for name in PLOTS:
        assert (whole.folder / name).stat().st_size < 100_000
        with Image.open(whole.folder / name) as image:
            assert image.width == 900
            counts = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
        colors = {color: count for count, color in counts or []}
        assert colors.get(blue, 0) > 100, name
        assert len(colors) > 10


def test_the_result_is_the_same_when_only_times_differ(whole: Whole, tmp_path: Path) -> None:
    other = make_material(tmp_path, seconds=70.0, state="resumed")
    assert page_of(other) != page_of(whole.material)
    result = json.loads((whole.folder / "report.json").read_bytes())
    assert result == json.loads(json.dumps(result_values(other, ReportRecipe())))
    assert result["scores"]["chat_eval_rl"]["sums"]["value"] == 0.8
    assert result["counts"]["rl"] == {"steps": 80}
    assert result["lineage"]["rl"]["inputs"].keys() == {"sft", "tokenizer"}


def test_the_lineage_says_what_a_run_began_with(whole: Whole) -> None:
    trained = whole.material.manifests["pretrain"]
    begun = {"started_from": f"pretrain/{'0123abcd' * 8}", "started_from_step": 1600}
    other = trained.model_copy(update={"provenance": {**trained.provenance, **begun}})
    (row,) = [
        row
        for row in tables(page_of(Material({"pretrain": other}, whole.material.folders)))[-1]
        if row[0] == f"`{trained.ref.short}`"
    ]
    assert row[2].endswith("`; began with the first 1,600 steps of `pretrain/0123abcd`")
    assert "began with" not in whole.page


def test_the_result_changes_with_a_score_and_with_the_number_of_samples(
    whole: Whole, tmp_path: Path
) -> None:
    lesser = make_material(tmp_path, stations=tuple(CONTENTS)[:-1])
    values = result_values(whole.material, ReportRecipe())
    assert values != result_values(lesser, ReportRecipe())
    fewer = result_values(whole.material, ReportRecipe(num_samples=1))
    assert values["scores"] == fewer["scores"]
    # One right reply and one wrong; of four each there are two kinds of right ones to begin with.
    assert [len(fewer["samples"][name]) for name in ("base_eval", "chat_eval_rl")] == [1, 2]
    assert len(values["samples"]["chat_eval_rl"]) == 6


def test_a_later_run_puts_its_own_stages_in_the_page(whole: Whole) -> None:
    manifests, rows = whole.material.manifests, whole.material.rows
    later = [StageRow(row.station, "cached", 0.1) for row in rows]
    lines = stage_lines(Material(manifests, {}, later))
    again = with_stages(whole.page, lines)
    assert "| made |" not in again
    assert again.count("| cached |") == len(later)
    assert headings(again) == headings(whole.page)
    assert with_stages(again, stage_lines(whole.material)) == whole.page
    assert with_stages("no marks", lines) == "no marks"


def test_rollouts_are_of_the_whole_of_rl_from_the_first_to_the_last(whole: Whole) -> None:
    def steps(number: int) -> list[int]:
        return [row["step"] for row in whole.material.rollouts(number)]

    assert [steps(number) for number in (0, 1, 2, 3)] == [[], [0], [0, 10], [0, 5, 10]]
    assert steps(50) == list(range(11))


def test_importing_the_report_loads_neither_torch_nor_matplotlib() -> None:
    script = (
        "import sys, nanochat_core.report.writing;"
        "sys.exit(bool({'torch', 'matplotlib', 'prefect'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
