"""The table of a sweep: as CSV with every number, and for people as Markdown and plain text."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat_core.conversation.markdown import escape
from nanochat_core.report.markdown import NOTHING, Lines, table
from nanochat_core.report.numbers import duration
from nanochat_core.report.scores import Score
from nanochat_core.report.sweeps.recipe import POINT_STATIONS, SweepRecipe, Value
from nanochat_core.report.sweeps.repeats import average, grouped
from nanochat_core.report.sweeps.rows import PointRow

BPB_TITLE, BPB_DECIMALS = "bpb", 4
SCORE_NAMES = {"core_metric": "CORE", "chatcore_metric": "ChatCORE"}
"""What people call a score; that of a run without the official tasks has no other name."""
BASE_SCORE, CHAT_SCORE = "score", "chat score"
LARGE = 1e5
"""From here on a float that was varied reads as a power of ten."""
TERMINAL_WIDTH = 100
LESS_WANTED = ("FLOPs", "steps", "shared steps", "tokens", "parameters")
"""Columns that a terminal goes without, one after another, where a line would not fit."""
_SIZES = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))


@dataclass(frozen=True)
class Column:
    """A column for people. One that says the same of every point moves into a sentence."""

    title: str
    text: Callable[[PointRow], str]
    is_varied: bool = False
    is_own: bool = False
    """Whether it stays a column even when all points have the same in it."""


def csv_text(rows: Sequence[PointRow], recipe: SweepRecipe) -> str:
    """table.csv: a line for each point with every number as it is, and its artifacts."""
    varied = [name for name in recipe.varied if name != "depth"]
    stations = [name for name in POINT_STATIONS if any(name in row.refs for row in rows)]
    numbers = ["depth", "parameters", "scaling_parameters", "tokens", "tokens_per_parameter"]
    numbers += ["steps", "first_step", "flops", "bpb", "score_name", "score", "score_stderr"]
    numbers += ["chat_score_name", "chat_score", "chat_score_stderr"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["point", *varied, *numbers, "minutes", "money", *stations])
    for row in rows:
        cells = [row.label, *(row.values.get(name, "") for name in varied)]
        cells += [getattr(row, name) for name in numbers]
        cells += [round(row.seconds / 60, 4), round(row.money, 6)]
        cells += [row.refs.get(name, "") for name in stations]
        writer.writerow(cells)
    return out.getvalue()


def terminal_table(rows: Sequence[PointRow], recipe: SweepRecipe) -> Lines:
    """The table as plain text, numbers to the right; then what all have in common, and failures."""
    columns = shown_columns(rows, recipe)
    lines = _aligned(columns, rows)
    for title in LESS_WANTED:
        if len(lines[0]) > TERMINAL_WIDTH:
            columns = [column for column in columns if column.is_own or column.title != title]
            lines = _aligned(columns, rows)
    said = [common(rows, recipe), best(rows, recipe), without_shared(rows, recipe)]
    said += [f"Failed: {label}." for label in recipe.failed]
    return [*lines, *(line for line in said if line)]


def _aligned(columns: Sequence[Column], rows: Sequence[PointRow]) -> Lines:
    cells = [[column.title for column in columns]]
    cells += [[column.text(row) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def markdown_table(rows: Sequence[PointRow], recipe: SweepRecipe) -> Lines:
    """The same table, with the artifacts from which the numbers of a line are."""
    columns = shown_columns(rows, recipe)
    stations = [name for name in POINT_STATIONS if any(name in row.refs for row in rows)]
    lowest = _lowest(rows)
    body = []
    for row in rows:
        cells = [_cell(column, row, is_best=row is lowest) for column in columns]
        refs = [row.refs.get(name, "") for name in stations]
        body.append([*cells, *(f"`{ref}`" if ref else NOTHING for ref in refs)])
    titles = [f"{escape(column.title)}:" for column in columns]
    return table([*titles, *(escape(name) for name in stations)], body)


def _cell(column: Column, row: PointRow, *, is_best: bool) -> str:
    text = column.text(row)
    if column.is_varied:
        return escape(text)
    return f"**{text}**" if is_best and column.title == BPB_TITLE else text


def repeats_table(rows: Sequence[PointRow]) -> Lines:
    """Mean and standard deviation over seeds; empty where no point has a repeat."""
    groups = grouped(rows)
    if len(groups) == len(rows):
        return []
    names = list(dict.fromkeys(name for key in groups for name, _ in key))
    has_score, has_chat = (
        any(getattr(row, name) is not None for row in rows) for name in ("score", "chat_score")
    )
    body = []
    for key, members in groups.items():
        values = dict(key)
        cells = [escape(value_text(values.get(name, ""))) for name in names]
        cells += [str(len(members)), _mean(members, "bpb", BPB_DECIMALS)]
        cells += [_mean(members, "score", 3)] if has_score else []
        cells += [_mean(members, "chat_score", 3)] if has_chat else []
        body.append(cells)
    titles = [f"{escape(short_name(name))}:" for name in names] + ["runs:", "bpb:"]
    titles += [f"{score_title(rows)}:"] if has_score else []
    titles += [f"{chat_title(rows)}:"] if has_chat else []
    return table(titles, body)


def _mean(rows: Sequence[PointRow], name: str, decimals: int) -> str:
    found = average(rows, lambda row: getattr(row, name))
    return NOTHING if found is None else found.text(decimals)


def shown_columns(rows: Sequence[PointRow], recipe: SweepRecipe) -> list[Column]:
    """What was varied, and of the rest what differs between points; results always."""
    columns = all_columns(rows, recipe)
    if len(rows) == 1:
        return columns
    return [column for column in columns if column.is_own or not _is_common(column, rows)]


def common(rows: Sequence[PointRow], recipe: SweepRecipe) -> str:
    """What all points have in common: `All: depth 2, tokens 3.07 M.`"""
    if len(rows) == 1:
        return ""
    same = [c for c in all_columns(rows, recipe) if not c.is_own and _is_common(c, rows)]
    said = [f"{c.title} {c.text(rows[0])}" for c in same if c.text(rows[0]) != NOTHING]
    return f"All: {', '.join(said)}." if said else ""


def without_shared(rows: Sequence[PointRow], recipe: SweepRecipe) -> str:
    """What the costs of points leave out; '' where each trained all of its steps itself."""
    if not any(row.first_step for row in rows):
        return ""
    costs = "Time and money leave" if recipe.price_per_hour else "Time leaves"
    return f"{costs} out shared steps, which another run trained: alone, a point takes more."


def _is_common(column: Column, rows: Sequence[PointRow]) -> bool:
    return len({column.text(row) for row in rows}) == 1


def all_columns(rows: Sequence[PointRow], recipe: SweepRecipe) -> list[Column]:
    """Every column for people, in order."""
    columns = [_varied_column(name) for name in recipe.varied]
    if "depth" not in recipe.varied:
        columns.append(Column("depth", lambda row: str(row.depth)))
    columns += [
        Column("parameters", lambda row: quantity(row.parameters)),
        Column("tokens", lambda row: quantity(row.tokens)),
        Column("tokens/N", lambda row: ratio(row.tokens_per_parameter)),
        Column("steps", lambda row: f"{row.steps:,}"),
        Column("FLOPs", lambda row: power(row.flops)),
    ]
    if any(row.first_step for row in rows):
        columns.append(Column("shared steps", lambda row: f"{row.first_step:,}"))
    columns.append(Column(BPB_TITLE, bpb_text, is_own=True))
    if any(row.score is not None for row in rows):
        columns.append(Column(score_title(rows), score_text, is_own=True))
    if any(row.chat_score is not None for row in rows):
        columns.append(Column(chat_title(rows), chat_text, is_own=True))
    columns.append(Column("time", lambda row: duration(row.seconds), is_own=True))
    if recipe.price_per_hour:
        columns.append(Column("money", lambda row: money(row.money), is_own=True))
    return columns


def _varied_column(name: str) -> Column:
    def text(row: PointRow) -> str:
        return value_text(row.values.get(name, NOTHING))

    return Column(short_name(name), text, is_varied=True, is_own=True)


def short_name(name: str) -> str:
    """A varied field as a title: those of pretraining, the most usual, without their station."""
    return name.removeprefix("pretrain.")


def value_text(value: Value) -> str:
    """A varied value as people write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and abs(value) >= LARGE:
        return power(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def bpb_text(row: PointRow) -> str:
    """Bits per byte with four decimals."""
    return NOTHING if row.bpb is None else f"{row.bpb:.{BPB_DECIMALS}f}"


def score_text(row: PointRow) -> str:
    """The base model's score with its standard error."""
    return NOTHING if row.score is None else Score(row.score, row.score_stderr).text()


def chat_text(row: PointRow) -> str:
    """The chat model's score with its standard error."""
    return (
        NOTHING if row.chat_score is None else Score(row.chat_score, row.chat_score_stderr).text()
    )


def score_title(rows: Sequence[PointRow]) -> str:
    """What the base models' score is called."""
    return _title({row.score_name for row in rows}, BASE_SCORE)


def chat_title(rows: Sequence[PointRow]) -> str:
    """What the chat models' score is called."""
    return _title({row.chat_score_name for row in rows}, CHAT_SCORE)


def _title(names: set[str], otherwise: str) -> str:
    names = names - {""}
    return SCORE_NAMES.get(next(iter(names)), otherwise) if len(names) == 1 else otherwise


def quantity(value: float) -> str:
    """`655 k`, `1.18 M`, `27`."""
    for size, letter in _SIZES:
        # From 999.5 on, three digits of the smaller unit would be rounded to 1e+03.
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def power(value: float) -> str:
    """FLOPs: `1.39e13`."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def ratio(value: float) -> str:
    """Tokens per parameter: `0.54`, `12.3`, `1,230`."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def money(value: float) -> str:
    """Of whatever the price was in: `0.012`, `1.32`, `132`."""
    return f"{value:.2g}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def best(rows: Sequence[PointRow], recipe: SweepRecipe) -> str:
    """Which point has the fewest bits per byte, over its seeds if there are several.

    Nothing where there is no choice, and of scaling laws, which ask for the best at each budget.
    """
    if recipe.kind == "scaling_laws":
        return ""
    groups = grouped(rows)
    found = {
        key: mean
        for key, members in groups.items()
        if (mean := average(members, lambda row: row.bpb)) is not None
    }
    if len({mean.mean for mean in found.values()}) < 2:
        return ""
    lowest = min(found, key=lambda key: found[key].mean)
    what = "Lowest mean bpb" if len(groups) < len(rows) else "Lowest bpb"
    named = ", ".join(f"{short_name(name)} {value_text(value)}" for name, value in lowest)
    return f"{what}: {named} with {found[lowest].text(BPB_DECIMALS)}."


def _lowest(rows: Sequence[PointRow]) -> PointRow | None:
    measured = [row for row in rows if row.bpb is not None]
    return min(measured, key=lambda row: row.bpb or 0.0, default=None)
