"""The scaling laws of a sweep's points. Imported when they are asked for: scipy takes its time."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat_core.report.markdown import Lines
from nanochat_core.report.sweeps.isoflop import ScalingPoint, fit_laws
from nanochat_core.report.sweeps.law_plots import draw_laws
from nanochat_core.report.sweeps.law_text import laws_csv, laws_markdown, laws_values
from nanochat_core.report.sweeps.rows import PointRow

BUDGET = "pretrain.target_flops"
LAWS_FILE = "laws.csv"


@dataclass(frozen=True)
class LawPages:
    """What is said of the laws: in words, in numbers, and the titles of the plots."""

    words: Lines
    values: Mapping[str, Any]
    plots: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> Lines:
        """The first words, up to the tables, without their marks: for a terminal."""
        lines = itertools.takewhile(lambda line: not line.startswith("|"), self.words[1:])
        return [re.sub(r"\*\*|[`\\]", "", line) for line in lines if line]


def write_laws(rows: Sequence[PointRow], folder: Path) -> LawPages | None:
    """Fit the points that were evaluated; write laws.csv and the plots. None without such."""
    points = scaling_points(rows)
    if not points:
        return None
    laws = fit_laws(points)
    (folder / LAWS_FILE).write_text(laws_csv(laws), encoding="utf-8")
    return LawPages(laws_markdown(laws), laws_values(laws), draw_laws(laws, folder))


def scaling_points(rows: Sequence[PointRow]) -> list[ScalingPoint]:
    """What a fit needs of each point: the compute it was to have, and what it had."""
    return [
        ScalingPoint(
            label=row.label,
            budget=float(row.values.get(BUDGET, row.flops)),
            flops=row.flops,
            scaling_parameters=row.scaling_parameters,
            tokens=row.tokens,
            bpb=row.bpb,
        )
        for row in rows
        if row.bpb is not None
    ]
