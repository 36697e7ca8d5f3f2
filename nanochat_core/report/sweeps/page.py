"""Write the results of a sweep: a page, its table as CSV and as text, plots, and a result file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_core.artifacts.types import Manifest
from nanochat_core.config.job import Role, StageOutput
from nanochat_core.conversation.markdown import escape
from nanochat_core.report.markdown import Lines, section
from nanochat_core.report.sweeps.costs import costs, lineage
from nanochat_core.report.sweeps.plots import draw_plots
from nanochat_core.report.sweeps.recipe import SweepRecipe
from nanochat_core.report.sweeps.repeats import grouped
from nanochat_core.report.sweeps.rows import BPB, PointRow, point_material, read_rows
from nanochat_core.report.sweeps.table import (
    best,
    common,
    csv_text,
    markdown_table,
    repeats_table,
    terminal_table,
    without_shared,
)

if TYPE_CHECKING:
    from nanochat_core.report.sweeps.laws import LawPages

PAGE_FILE, RESULT_FILE = "sweep.md", "sweep.json"
TABLE_FILE, TEXT_FILE = "table.csv", "table.txt"
TITLES = {"miniseries": "Miniseries", "scaling_laws": "Scaling laws", "sweep": "Sweep"}


@dataclass(frozen=True)
class Sweep:
    """Everything that the page is made of."""

    recipe: SweepRecipe
    manifests: Mapping[str, Manifest]
    rows: Sequence[PointRow]
    plots: Mapping[str, str] = field(default_factory=dict)
    laws: "LawPages | None" = None


def write_sweep(
    manifests: Mapping[str, Manifest],
    folders: Mapping[str, Path],
    recipe: SweepRecipe,
    folder: Path,
) -> StageOutput:
    """Write sweep.json (scores and counts, never times), sweep.md, the tables and the plots."""
    sweep = _drawn(manifests, folders, recipe, folder)
    result = json.dumps(result_values(sweep), indent=1, sort_keys=True, allow_nan=False)
    texts = {
        RESULT_FILE: result + "\n",
        PAGE_FILE: "\n".join(page_lines(sweep, made=datetime.now(UTC))),
        TABLE_FILE: csv_text(sweep.rows, recipe),
        TEXT_FILE: "\n".join(text_lines(sweep)) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    files: dict[str, Role] = dict.fromkeys(sorted(path.name for path in folder.iterdir()), "record")
    return StageOutput(files={**files, RESULT_FILE: "result"}, metrics=key_numbers(sweep))


def _drawn(
    manifests: Mapping[str, Manifest],
    folders: Mapping[str, Path],
    recipe: SweepRecipe,
    folder: Path,
) -> Sweep:
    """Everything that is said, with the plots and the CSV of the laws written."""
    rows = read_rows(manifests, folders, recipe)
    points = [point_material(manifests, folders, i) for i in range(len(rows))]
    curves = [point.series("pretrain", BPB) for point in points]
    laws = None
    if recipe.kind == "scaling_laws":
        from nanochat_core.report.sweeps.laws import write_laws

        laws = write_laws(rows, folder)
    plots = {**(laws.plots if laws else {}), **draw_plots(rows, curves, recipe, folder)}
    return Sweep(recipe, manifests, rows, plots, laws)


def key_numbers(sweep: Sweep) -> dict[str, float | int | str]:
    """What is said of a sweep in a line."""
    measured = [row.bpb for row in sweep.rows if row.bpb is not None]
    lowest: dict[str, float | int | str] = {"lowest val/bpb": min(measured)} if measured else {}
    failed = {"failed": len(sweep.recipe.failed)} if sweep.recipe.failed else {}
    return {"points": len(sweep.rows), **failed, **lowest}


def text_lines(sweep: Sweep) -> Lines:
    """What a terminal shows: the table, what is notable, and the laws in a few sentences."""
    laws = sweep.laws.plain if sweep.laws else []
    return [*terminal_table(sweep.rows, sweep.recipe), *laws]


def page_lines(sweep: Sweep, *, made: datetime) -> Lines:
    """The page; sections without material are left out."""
    return [
        f"# nanochat: {TITLES[sweep.recipe.kind].lower()}",
        "",
        f"{_counted(sweep.recipe)}, {made:%Y-%m-%d %H:%M} UTC",
        "",
        *_results(sweep),
        *(sweep.laws.words if sweep.laws else []),
        *section("Plots", *_plots(sweep)),
        *costs(sweep.manifests, sweep.recipe),
        *lineage(sweep.manifests, sweep.recipe),
    ]


def _counted(recipe: SweepRecipe) -> str:
    number = len(recipe.points)
    said = f"{number} point{'' if number == 1 else 's'}"
    return f"{said}, {len(recipe.failed)} failed" if recipe.failed else said


def _results(sweep: Sweep) -> Lines:
    rows, recipe = sweep.rows, sweep.recipe
    failed = [f"- failed: {escape(label)}" for label in recipe.failed]
    said = _sentences(common(rows, recipe), best(rows, recipe))
    repeats = repeats_table(rows)
    return section(
        "Results",
        markdown_table(rows, recipe),
        [said] if said else [],
        failed,
        ["Over seeds, with the standard deviation of one run (sd):"] if repeats else [],
        repeats,
        _notes(sweep),
    )


def _sentences(*sentences: str) -> str:
    said = escape(" ".join(filter(None, sentences)))
    # A colon before a space is no markup anywhere, and reads better as it is.
    return said.replace("\\: ", ": ")


def _notes(sweep: Sweep) -> Lines:
    """What the numbers are, from where, and how sure."""
    rows = sweep.rows
    names = ", ".join(f"`{name}`" for name in sorted({row.score_name for row in rows} - {""}))
    score = f" and the score ({names})" if names else ""
    notes = [
        f"bpb{score}: of the artifact `base_eval` in the same line; parameters, tokens, steps and "
        "FLOPs: of `pretrain`. N, of tokens/N, counts the matrices of the blocks and the head. ± "
        "is one standard error, over the problems of a score."
    ]
    if len(rows) > 1 and len(grouped(rows)) == len(rows):
        notes.append(
            "Every point was run once, so neighbours may differ by chance alone: vary "
            "`pretrain.seed`, too, to see by how much."
        )
    if text_differs(sweep.manifests):
        notes.append(
            "**Not all points were measured on the same held-out text**: their bpb do not compare."
        )
    notes.append(without_shared(rows, sweep.recipe))
    return [" ".join(filter(None, notes))]


def text_differs(manifests: Mapping[str, Manifest]) -> bool:
    """Whether evaluations of base models read other held-out text than one another."""
    read = {
        (manifest.inputs.get("shards", ""), manifest.recipe.get("validation_tokens"))
        for manifest in manifests.values()
        if manifest.station == "base_eval"
    }
    return len(read) > 1


def _plots(sweep: Sweep) -> list[Lines]:
    return [
        block
        for name, title in sweep.plots.items()
        for block in ([f"**{escape(title)}.**"], [f"![{title}]({name})"])
    ]


def result_values(sweep: Sweep) -> dict[str, Any]:
    """What sweep.json holds: the same whenever and wherever the points were made."""
    return {
        "kind": sweep.recipe.kind,
        "failed": list(sweep.recipe.failed),
        "points": [_point_values(sweep, i) for i in range(len(sweep.rows))],
        **({"scaling_laws": dict(sweep.laws.values)} if sweep.laws else {}),
    }


def _point_values(sweep: Sweep, index: int) -> dict[str, Any]:
    row = sweep.rows[index]
    made = point_material(sweep.manifests, {}, index).manifests
    return {
        "label": row.label,
        "values": dict(row.values),
        "depth": row.depth,
        "parameters": row.parameters,
        "scaling_parameters": row.scaling_parameters,
        "tokens": row.tokens,
        "steps": row.steps,
        "flops": row.flops,
        "bpb": row.bpb,
        "score": {"name": row.score_name, "value": row.score, "stderr": row.score_stderr},
        "chat_score": {
            "name": row.chat_score_name,
            "value": row.chat_score,
            "stderr": row.chat_score_stderr,
        },
        "artifacts": {
            station: {"fingerprint": manifest.fingerprint, "digest": manifest.digest}
            for station, manifest in made.items()
        },
    }
