"""What the doctor found, as plain tables for a terminal of 80 columns."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 80
INDENT = "  "
GAP = "  "
MIN_LAST_COLUMN = 24


@dataclass(frozen=True)
class Problem:
    """Something that does not work, and what to do; `stops` if the chosen setting needs it."""

    what: str
    remedy: str
    stops: bool = False


@dataclass(frozen=True)
class Section:
    """One part of the page. Without `columns`, rows are names and values; `data` is for --json.

    `about` follows the name in its line. `numeric` columns, by place, are aligned to the right.
    """

    name: str
    rows: Sequence[Sequence[str]]
    columns: Sequence[str] = ()
    about: str = ""
    numeric: Sequence[int] = ()
    problems: Sequence[Problem] = ()
    data: dict[str, Any] = field(default_factory=dict)


def section_lines(section: Section, width: int = WIDTH) -> list[str]:
    """The section as lines of at most `width` characters, problems last."""
    rows = [*([section.columns] if section.columns else []), *section.rows]
    lines = table_lines(rows, section.numeric, width - len(INDENT))
    problems = [line for problem in section.problems for line in problem_lines(problem, width)]
    return [
        f"{section.name} {section.about}".rstrip(),
        *(INDENT + line for line in lines),
        *problems,
    ]


def problem_lines(problem: Problem, width: int = WIDTH) -> list[str]:
    """A problem and what to do, wrapped, marked with two signs where it stops the setting."""
    mark = "!! " if problem.stops else "!  "
    text = f"{problem.what.rstrip('.')}. {problem.remedy.rstrip('.')}."
    return textwrap.wrap(
        text,
        width,
        initial_indent=INDENT + mark,
        subsequent_indent=INDENT + " " * len(mark),
        break_on_hyphens=False,
    )


def table_lines(
    rows: Sequence[Sequence[str]], numeric: Sequence[int] = (), width: int = WIDTH
) -> list[str]:
    """Rows as lines, columns as wide as their widest cell; the last one is wrapped to fit."""
    if not rows:
        return []
    columns = list(zip(*rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns[:-1]]
    before = sum(widths) + len(GAP) * len(widths)
    lines = []
    for row in rows:
        cells = [
            cell.rjust(size) if place in numeric else cell.ljust(size)
            for place, (cell, size) in enumerate(zip(row, widths, strict=False))
        ]
        start = "".join(cell + GAP for cell in cells)
        room = max(width - before, MIN_LAST_COLUMN)
        texts = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False)
        texts = texts or [""]
        lines.append((start + texts[0]).rstrip())
        lines += [" " * before + text for text in texts[1:]]
    return lines


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits and no exponent where it has few; empty for None."""
    if value is None:
        return ""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        decimals = max(0, digits - len(str(int(abs(value)))) if abs(value) >= 1 else digits)
        return f"{value:,.{decimals}f}"
    return f"{value:.1e}"


def size(num_bytes: float) -> str:
    """`512 MB`, `3.4 GB`, `1.2 TB`, in powers of 1000."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6)):
        if num_bytes >= 0.9995 * 10**power:
            return f"{num_bytes / 10**power:.3g} {unit}"
    return f"{num_bytes / 1000:.3g} kB"


def yes(value: bool) -> str:
    """A truth value in a table."""
    return "yes" if value else "no"


def cause(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
