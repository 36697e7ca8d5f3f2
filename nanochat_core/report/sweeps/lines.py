"""Which field of a sweep goes along the x axis, and which points make a line over it."""

from collections.abc import Sequence

from nanochat_core.report.sweeps.drawing import is_numeric
from nanochat_core.report.sweeps.recipe import SweepRecipe, Value
from nanochat_core.report.sweeps.repeats import is_seed
from nanochat_core.report.sweeps.rows import PointRow
from nanochat_core.report.sweeps.table import short_name, value_text

Line = tuple[str, list[PointRow]]
"""What its points have in common, and the points."""


def split(rows: Sequence[PointRow], recipe: SweepRecipe) -> tuple[str, list[Line]]:
    """The field for the x axis, and the points of each combination of the others, seeds aside.

    The x axis is depth where it was varied, else the numeric field of most values; '' when only
    one value of everything is there.
    """
    several = [name for name in recipe.varied if len(distinct(rows, name)) > 1]
    fields = [name for name in several if not is_seed(name)]
    x = _x_field(rows, fields or several)
    lines: dict[str, list[PointRow]] = {}
    for row in rows:
        others = [
            f"{short_name(name)} {value_text(row.values.get(name, ''))}"
            for name in fields
            if name != x
        ]
        lines.setdefault(", ".join(others), []).append(row)
    return x, list(lines.items())


def _x_field(rows: Sequence[PointRow], names: Sequence[str]) -> str:
    if "depth" in names:
        return "depth"

    def worth(name: str) -> tuple[bool, int]:
        values = distinct(rows, name)
        return is_numeric(values), len(values)

    return max(names, key=worth, default="")


def distinct(rows: Sequence[PointRow], name: str) -> list[Value]:
    """The values that a field has, in the order in which they first appear."""
    return list(dict.fromkeys(row.values[name] for row in rows if name in row.values))
