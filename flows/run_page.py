"""The comparison of two runs for people: the answer in words, then one table."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.presets import STATIONS
from flows.run_differences import NumberPair, RunComparison, RunSummary, StationPair
from flows.wording import duration

MAX_LINES = 20
LONGEST_STATION = max(map(len, STATIONS))


def print_comparison(compared: RunComparison, console: Console | None = None) -> None:
    """Write it to the terminal, as wide as that is."""
    console = console or Console()
    for line in head_lines(compared):
        console.print(Text(line))
    console.print(_table(compared))


def head_lines(compared: RunComparison) -> list[str]:
    """Which runs, where they part and why, and what else differs."""
    lines = [
        f"{letter}: {_run_text(run)}" for letter, run in (("A", compared.old), ("B", compared.new))
    ]
    first = compared.divergence
    if first is None:
        lines += ["", "Both have the same artifacts."]
    else:
        lines += ["", f"They part at {first.station}:", *_some(c.text for c in first.causes)]
        later = [
            cause.text
            for pair in compared.stations
            for cause in pair.own
            if cause not in first.causes
        ]
        lines += ["", "Asked otherwise, too:", *_some(later)] if later else []
    for title, found in (
        ("Parameters that differ:", compared.parameters),
        ("Hardware and packages that differ:", compared.places),
    ):
        lines += ["", title, *_some(change.text for change in found)] if found else []
    return [*lines, ""]


def _run_text(run: RunSummary) -> str:
    # Records of earlier versions name no preset.
    parts = [f"run {run.run}", run.preset, f"{run.state} in {duration(run.seconds)}"]
    return ", ".join(part for part in parts if part)


def _some(lines: Iterable[str]) -> list[str]:
    found = list(lines)
    more = len(found) - MAX_LINES
    return [
        *(f"  {line}" for line in found[:MAX_LINES]),
        *([f"  and {more:,} more; --json has them"] if more > 0 else []),
    ]


def _table(compared: RunComparison) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold", min_width=LONGEST_STATION)
    for title in ("A", "B", "B - A"):
        table.add_column(title, overflow="fold", min_width=6)
    for pair in compared.stations:
        table.add_row(*_station_cells(pair))
        # Equal results have equal numbers: once is enough to see that.
        if not pair.is_same_result:
            for number in pair.numbers:
                table.add_row(*_number_cells(number))
    return table


def _station_cells(pair: StationPair) -> tuple[Text, str, str, str]:
    old, new = (
        "-" if seconds is None else f"{state} {duration(seconds)}"
        for state, seconds in zip(pair.states, pair.seconds, strict=True)
    )
    return Text(pair.station, style="bold"), old, new, "same" if pair.is_same_result else ""


def _number_cells(number: NumberPair) -> tuple[str, str, str, str]:
    return f"  {number.name}", _value(number.old), _value(number.new), _change_text(number)


def _value(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def _change_text(number: NumberPair) -> str:
    """`+0.24 ± 0.061`, and whether chance alone would do."""
    if number.change is None:
        return ""
    if number.change == 0:
        return "0"
    text = f"{number.change:+.3g}"
    if number.stderr is not None:
        text += f" ± {number.stderr:.2g}"
    return text + (" (noise)" if number.is_noise else "")
