"""The table of a sweep: CSV, plain text, Markdown."""

import csv
import io
from pathlib import Path

from markdown_it import MarkdownIt
from sweep_points import Point, Published, publish_points

from nanochat_core.report.sweeps.repeats import average, grouped
from nanochat_core.report.sweeps.rows import PointRow, read_rows
from nanochat_core.report.sweeps.table import (
    best,
    common,
    csv_text,
    markdown_table,
    money,
    power,
    quantity,
    ratio,
    repeats_table,
    terminal_table,
)

LR = "pretrain.optimizer.matrices.lr"
RATES = tuple(Point({LR: lr}, bpb) for lr, bpb in ((0.01, 2.4), (0.02, 2.25), (0.04, 2.31)))
DEPTHS = tuple(
    Point({"depth": d}, 2.6 - d / 10, depth=d, steps=30 * d, score=d / 10) for d in (1, 2, 3)
)


def rows_of(made: Published) -> list[PointRow]:
    return read_rows(made.manifests, made.folders, made.recipe)


def test_csv_holds_every_number_as_it_is_and_its_artifacts(tmp_path: Path) -> None:
    made = publish_points(tmp_path, DEPTHS, kind="miniseries", price_per_hour=3.0)
    rows = rows_of(made)
    read = list(csv.DictReader(io.StringIO(csv_text(rows, made.recipe))))
    assert [line["point"] for line in read] == ["depth=1", "depth=2", "depth=3"]
    assert [float(line["bpb"]) for line in read] == [row.bpb for row in rows]
    assert [float(line["flops"]) for line in read] == [row.flops for row in rows]
    assert [(line["minutes"], line["money"]) for line in read] == [("2.0", "0.1")] * 3
    assert read[1]["pretrain"] == made.manifests["001-pretrain"].ref.short
    assert read[1]["base_eval"] == made.manifests["001-base_eval"].ref.short
    assert {"depth", "parameters", "tokens", "score"} <= set(read[0])


def test_csv_has_a_column_of_the_full_name_of_what_was_varied(tmp_path: Path) -> None:
    made = publish_points(tmp_path, RATES)
    read = list(csv.DictReader(io.StringIO(csv_text(rows_of(made), made.recipe))))
    assert [line[LR] for line in read] == ["0.01", "0.02", "0.04"]


def test_what_all_points_share_is_said_once_and_is_no_column(tmp_path: Path) -> None:
    made = publish_points(tmp_path, RATES)
    lines = terminal_table(rows_of(made), made.recipe)
    titles = lines[0].split("  ")
    assert [title.strip() for title in titles if title.strip()] == [
        "optimizer.matrices.lr",
        "bpb",
        "score",
        "time",
    ]
    assert lines[-2] == (
        "All: depth 2, parameters 160 k, tokens 15.4 k, tokens/N 0.192, steps 30, FLOPs 7.37e9."
    )
    assert lines[-1] == "Lowest bpb: optimizer.matrices.lr 0.02 with 2.2500."


def test_the_plain_table_is_aligned_and_names_failures(tmp_path: Path) -> None:
    made = publish_points(tmp_path, DEPTHS, kind="miniseries", failed=("depth=4",))
    lines = terminal_table(rows_of(made), made.recipe)
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[0].split()[:4] == ["depth", "parameters", "tokens", "tokens/N"]
    assert lines[2].split()[0] == "1"
    assert lines[-1] == "Failed: depth=4."


def test_a_terminal_gets_what_fits_and_the_page_everything(tmp_path: Path) -> None:
    points = [Point({"a_field.of_length": i, "b": i}, 2.0 + i, depth=i, chat=0.3) for i in (1, 2)]
    made = publish_points(tmp_path, points, price_per_hour=2.0)
    rows = rows_of(made)
    lines = terminal_table(rows, made.recipe)
    assert max(map(len, lines[:4])) <= 100
    assert "bpb" in lines[0]
    assert "money" in lines[0]
    assert " FLOPs " not in lines[0]
    assert "| FLOPs |" in markdown_table(rows, made.recipe)[0]


def test_one_point_has_all_its_numbers_in_columns(tmp_path: Path) -> None:
    made = publish_points(tmp_path, DEPTHS[:1])
    rows = rows_of(made)
    lines = terminal_table(rows, made.recipe)
    assert len(lines) == 3
    assert (common(rows, made.recipe), best(rows, made.recipe)) == ("", "")


def test_money_is_a_column_where_there_is_a_price(tmp_path: Path) -> None:
    made = publish_points(tmp_path, DEPTHS, price_per_hour=24.0)
    lines = terminal_table(rows_of(made), made.recipe)
    assert lines[0].split()[-1] == "money"
    assert lines[2].split()[-1] == "0.8"


def test_the_markdown_table_marks_the_lowest_and_names_artifacts(tmp_path: Path) -> None:
    made = publish_points(tmp_path, (*RATES, Point({LR: "a|b`c"}, 2.5)))
    text = "\n".join(markdown_table(rows_of(made), made.recipe))
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    cells = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "td_open"]
    width = len(cells) // 4
    assert len(cells) == 4 * width
    assert [cell for cell in cells if cell.startswith("**")] == ["**2.2500**"]
    assert cells[width - 2] == f"`{made.manifests['000-pretrain'].ref.short}`"


def test_runs_that_differ_in_a_seed_are_averaged(tmp_path: Path) -> None:
    points = [
        Point({LR: lr, "pretrain.seed": seed}, bpb + seed / 100)
        for lr, bpb in ((0.01, 2.4), (0.02, 2.2))
        for seed in (1, 2, 3)
    ]
    made = publish_points(tmp_path, points)
    rows = rows_of(made)
    assert [len(members) for members in grouped(rows).values()] == [3, 3]
    found = average(rows[:3], lambda row: row.bpb)
    assert found is not None
    assert found.text(4) == "2.4200 (sd 0.0100)"
    table = repeats_table(rows)
    assert table[0] == "| optimizer.matrices.lr | runs | bpb | score |"
    assert table[2] == "| 0.01 | 3 | 2.4200 (sd 0.0100) | 0.250 (sd 0.000) |"


def test_without_repeats_there_are_no_averages(tmp_path: Path) -> None:
    assert repeats_table(rows_of(publish_points(tmp_path, RATES))) == []


def test_numbers_read_well_at_every_size() -> None:
    shown = [quantity(v) for v in (27, 999.6, 655_372, 999_600, 1_179_690, 2.5e9, 3e12)]
    assert shown == ["27", "1 k", "655 k", "1 M", "1.18 M", "2.5 G", "3 T"]
    assert (power(1.389e13), power(5e8)) == ("1.39e13", "5e8")
    assert (ratio(0.5432), ratio(12.0), ratio(1234.0)) == ("0.543", "12", "1,234")
    assert [money(v) for v in (0.0, 0.0123, 1.318, 132.4)] == ["0", "0.012", "1.32", "132"]
