"""A forecast as people read it: a table for the terminal, and one in Markdown; afterwards too."""

import textwrap
from collections.abc import Callable, Iterable, Sequence

from flows.forecast.types import ComparedRow, Forecast, Range, Source, StationForecast
from flows.wording import duration, size

WORDS: dict[Source, str] = {
    "store": "records",
    "similar": "akin",
    "elsewhere": "other",
    "bench": "bench",
    "reference": "formula",
}
DESCRIPTIONS: dict[Source, str] = {
    "store": "times of the same station on such a machine, in the records of this store",
    "similar": "times of stations of its kind on such a machine",
    "elsewhere": "times of the station on other hardware: wide range",
    "bench": "the measured step of --bench",
    "reference": "closed forms with figures of a machine of reference: wide range",
}
DEPENDS = "depends: cached if what is forced before it comes out as it was; counted as cached"
BUSY = 1.5
"""Processes for each core from which times are longer than on the machine by itself."""
MINUTES_FROM, HOURS_FROM = 100.0, 5400.0

Rows = list[tuple[str, ...]]


def forecast_lines(found: Forecast, width: int = 80) -> list[str]:
    """The table, the totals, and where the numbers come from."""
    titles, rows = _cells(found)
    lines = [*_table(titles, rows, width), ""]
    used = [station.source for station in found.stations if station.source]
    for source in dict.fromkeys(used):
        lines += _wrapped(f"{WORDS[source]}: {DESCRIPTIONS[source]}", width)
    if any(station.state == "depends" for station in found.stations):
        lines += _wrapped(DEPENDS, width)
    return lines + _wrapped(_notes(found), width)


def forecast_markdown(found: Forecast) -> str:
    """The same as a page."""
    titles, rows = _cells(found)
    used = dict.fromkeys(station.source for station in found.stations if station.source)
    legend = [f"- {WORDS[source]}: {DESCRIPTIONS[source]}" for source in used]
    return "\n".join([*_markdown(titles, rows), "", *legend, "", _notes(found)])


def compared_lines(rows: Sequence[ComparedRow], width: int = 80) -> list[str]:
    """Predicted against actual, a line each."""
    return _table(COMPARED_TITLES, _compared_cells(rows), width)


def compared_markdown(rows: Sequence[ComparedRow]) -> str:
    """The same as a table of a report."""
    return "\n".join(_markdown(COMPARED_TITLES, _compared_cells(rows)))


COMPARED_TITLES = ("station", "predicted", "range", "took", "off by", "in range")


def _compared_cells(rows: Sequence[ComparedRow]) -> Rows:
    return [
        (
            row.station,
            duration(row.predicted.mid),
            span(row.predicted),
            duration(row.actual_seconds),
            _off(row),
            "yes" if row.is_inside else "no",
        )
        for row in rows
    ]


def _off(row: ComparedRow) -> str:
    """`+12 %`: it took that much longer than predicted."""
    if row.predicted.mid < 1.0 and row.actual_seconds < 1.0:
        return ""
    return f"{row.actual_seconds / max(row.predicted.mid, 0.1) - 1:+.0%}"


def span(seconds: Range) -> str:
    """`35-88 s`, `2.2-6.0 m`, `1.2-3.4 h`."""
    unit, name = 1.0, "s"
    if seconds.high >= HOURS_FROM:
        unit, name = 3600.0, "h"
    elif seconds.high >= MINUTES_FROM:
        unit, name = 60.0, "m"
    low, high = seconds.low / unit, seconds.high / unit
    digits = 1 if high < 10 else 0
    return f"{low:.{digits}f}-{high:.{digits}f} {name}"


def money(value: float) -> str:
    """Of whatever the price was in: `0.012`, `1.32`, `132`."""
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


Column = tuple[str, Callable[[StationForecast], str], str]
"""Title, what it says of a station, what it says of the whole."""


def _cells(found: Forecast) -> tuple[tuple[str, ...], Rows]:
    columns: list[Column] = [
        ("station", lambda each: each.station, "in all"),
        ("", _what, ""),
        ("time", lambda each: duration(each.seconds.mid), duration(found.seconds.mid)),
        ("range", lambda each: span(each.seconds), span(found.seconds)),
    ]
    if found.money is not None:
        total = money(found.money.mid)
        columns.append(("money", lambda each: money(each.money.mid) if each.money else "", total))
    columns += [
        ("memory", lambda each: _size(each.memory_bytes), _size(found.memory_bytes)),
        ("disk", lambda each: _size(each.disk_bytes + each.work_bytes), _size(found.disk_bytes)),
    ]
    if found.download_bytes:
        total = _size(found.download_bytes)
        columns.append(("download", lambda each: _size(each.download_bytes), total))
    columns.append(("by", lambda each: WORDS[each.source] if each.source else "", ""))
    rows = [tuple(cell(each) for _, cell, _ in columns) for each in found.stations]
    around = {"station": "(start, end)", "time": duration(found.overhead_seconds.mid)}
    around["range"] = span(found.overhead_seconds)
    titles = tuple(title for title, _, _ in columns)
    rows += [tuple(around.get(title, "") for title in titles)]
    return titles, [*rows, tuple(whole for _, _, whole in columns)]


def _what(each: StationForecast) -> str:
    return f"from {each.from_step:,}" if each.from_step else each.state


def _size(num_bytes: int) -> str:
    return size(num_bytes) if num_bytes else ""


def _notes(found: Forecast) -> str:
    cost = ""
    if found.money is not None and found.price_per_hour is not None:
        low, high = money(found.money.low), money(found.money.high)
        cost = f" Money at {found.price_per_hour:g} an hour: {low} to {high}."
    busy = ""
    if found.busy > BUSY:
        busy = f" It is busy now: {found.busy:.1f} processes for each core, so it takes longer."
    sent = ", ".join(f"{station} (pool {pool})" for station, pool in found.pools.items())
    pools = f" Counted as if on that machine, too: {sent}." if sent else ""
    return (
        f"For {found.machine}.{busy}{pools}{cost} Memory: the peak of one process. "
        "Disk: with checkpoints while it trains. What is cached was looked up, not read."
    )


def _table(titles: Sequence[str], rows: Rows, width: int) -> list[str]:
    """Columns with two blanks between them; where the terminal is narrow one, or a column less."""
    cells = [tuple(titles), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    if sum(widths) + len(widths) - 1 > width and titles[-1] == LAST_RESORT:
        return _table(titles[:-1], [row[:-1] for row in rows], width)
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width else " "
    return [
        gap.join(
            text.rjust(space) if title in RIGHT else text.ljust(space)
            for text, space, title in zip(row, widths, titles, strict=True)
        ).rstrip()
        for row in cells
    ]


LAST_RESORT = "by"
RIGHT = {"time", "range", "money", "memory", "disk", "download", "predicted", "took", "off by"}


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ")


def _markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(titles)} |",
        f"|{' --- |' * len(titles)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
