"""Write a report: a page for people, its plots, and a file of what does not change with time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanochat_core.config.job import Role, StageOutput
from nanochat_core.conversation.markdown import escape
from nanochat_core.report import sections
from nanochat_core.report.material import CHAT_EVALS, Material
from nanochat_core.report.plots import draw_plots
from nanochat_core.report.recipe import ReportRecipe
from nanochat_core.report.results import results, score_changes
from nanochat_core.report.samples import pick_answers, pick_samples
from nanochat_core.report.text import training_text

REPORT_FILE, RESULT_FILE = "report.md", "report.json"
STAGES_BEGIN, STAGES_END = "<!-- stages: begin -->", "<!-- stages: end -->"
"""Around what only holds for one run: a page that shows the report again puts its own there."""
_TIMES = ("time", "seconds", "per_sec")


def write_report(material: Material, recipe: ReportRecipe, folder: Path) -> StageOutput:
    """Write report.md, report.json and the plots into `folder`."""
    plots = draw_plots(material, folder)
    lines = report_lines(material, recipe, plots, made=datetime.now(UTC))
    (folder / REPORT_FILE).write_text("\n".join(lines), encoding="utf-8")
    result = json.dumps(result_values(material, recipe), indent=1, sort_keys=True)
    (folder / RESULT_FILE).write_text(result + "\n", encoding="utf-8")
    files: dict[str, Role] = {RESULT_FILE: "result", REPORT_FILE: "record"}
    files |= dict.fromkeys(plots, "record")
    headings = sum(line.startswith("## ") for line in lines)
    return StageOutput(files=files, metrics={"sections": headings, "plots": len(plots)})


def report_lines(
    material: Material, recipe: ReportRecipe, plots: Mapping[str, str], *, made: datetime
) -> list[str]:
    """The page; sections without material are left out."""
    return [
        *_title(material, made),
        *results(material),
        *sections.curves(material, plots),
        *sections.samples(material, recipe.num_samples),
        *training_text(material),
        *sections.settings(material),
        *stage_lines(material),
        *sections.environment(material),
        *sections.lineage(material),
    ]


def stage_lines(material: Material) -> list[str]:
    """The stages of this run between their marks; empty without stages."""
    lines = sections.stages(material)
    return [STAGES_BEGIN, "", *lines, STAGES_END, ""] if lines else []


def with_stages(page: str, lines: Sequence[str]) -> str:
    """The page with the stages of another run in place of its own."""
    before, begin, rest = page.partition(STAGES_BEGIN)
    _, end, after = rest.partition(STAGES_END)
    return before + "\n".join(lines).rstrip("\n") + after if begin and end else page


def _title(material: Material, made: datetime) -> list[str]:
    preset, run = material.run.get("preset", ""), material.run.get("run", "")
    words = [f"preset {escape(str(preset))}"] if preset else []
    words += [f"written by run {escape(str(run))}"] if run else []
    words.append(f"{made:%Y-%m-%d %H:%M} UTC")
    return ["# nanochat report", "", ", ".join(words), ""]


def result_values(material: Material, recipe: ReportRecipe) -> dict[str, Any]:
    """What report.json holds: scores, counts, samples and lineage, the same whenever it is made."""
    evaluations = {"base_eval": {**material.base_scores(), **material.base_tasks()}}
    evaluations |= {name: material.chat_scores(name) for name in CHAT_EVALS}
    number = recipe.num_samples
    answers = {name: list(pick_answers(material, name, number)) for name in CHAT_EVALS}
    return {
        "scores": {
            station: {name: asdict(score) for name, score in scores.items()}
            for station, scores in evaluations.items()
            if scores
        },
        "changes_through_rl": {
            name: asdict(gain) for name, gain in score_changes(material).items()
        },
        "counts": {station: _counts(material, station) for station in material.stations},
        "samples": {
            name: chosen
            for name, chosen in {"base_eval": pick_samples(material, number), **answers}.items()
            if chosen
        },
        "lineage": {
            station: {
                "fingerprint": material.manifests[station].fingerprint,
                "digest": material.manifests[station].digest,
                "inputs": dict(sorted(material.manifests[station].inputs.items())),
            }
            for station in material.stations
        },
    }


def _counts(material: Material, station: str) -> dict[str, int]:
    return {
        name: value
        for name, value in sorted(material.manifests[station].metrics.items())
        if isinstance(value, int) and not any(word in name for word in _TIMES)
    }
