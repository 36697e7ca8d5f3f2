"""The files of an evaluation, written from what was found (torch-free)."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat_core.config.job import METRICS_FILE, Role, StageOutput
from nanochat_core.evals.chat_results import ChatResult
from nanochat_core.evals.core_results import CoreResult, example_rows
from nanochat_core.evals.score_table import CORE_FILE, SCORES_FILE, core_rows

SAMPLES_FILE = "samples.json"
EXAMPLES_FILE = "examples.csv"
ANSWERS_FILE = "answers.json"
BUNDLE_FOLDER = "bundle"
"""Below the output of base_eval: tasks that were made of held-out text."""


def base_scores(loss: Mapping[str, float | int], tasks: CoreResult) -> dict[str, Any]:
    """The content of scores.json; `loss` holds the numbers of bits per byte, if there are any."""
    summaries = {task.task.label: task.summary() for task in tasks.tasks}
    return {**loss, **task_scores(tasks), "tasks": summaries}


def task_scores(tasks: CoreResult) -> dict[str, float]:
    """The score of all tasks under its name, with its standard error; empty without tasks."""
    if not tasks.tasks:
        return {}
    name = tasks.metric_name
    return {name: tasks.score, f"{name}/stderr": tasks.score_stderr}


def write_base_eval(
    output: Path,
    loss: Mapping[str, float | int],
    tasks: CoreResult,
    samples: Sequence[Mapping[str, Any]],
    *,
    config: Mapping[str, Any],
) -> StageOutput:
    """Write scores, samples and the record of every example; `config` is that of the model."""
    values = base_scores(loss, tasks)
    write_json(output / SCORES_FILE, values)
    write_json(output / SAMPLES_FILE, samples)
    write_csv(output / EXAMPLES_FILE, example_rows(tasks))
    metrics = {name: value for name, value in loss.items() if name == "val/bpb"}
    metrics |= task_scores(tasks)
    # One line that goes on where the metrics of pretraining end.
    line = json.dumps({"step": config.get("plan", {}).get("num_iterations"), **metrics}) + "\n"
    (output / METRICS_FILE).write_text(line, encoding="utf-8")
    files: dict[str, Role] = {SCORES_FILE: "result", SAMPLES_FILE: "result"}
    files |= {EXAMPLES_FILE: "record", METRICS_FILE: "record"}
    if tasks.tasks:
        write_csv(output / CORE_FILE, core_rows(values))
        files[CORE_FILE] = "record"
    bundle_files = (path for path in (output / BUNDLE_FOLDER).rglob("*") if path.is_file())
    files |= {path.relative_to(output).as_posix(): "record" for path in sorted(bundle_files)}
    return StageOutput(files=files, metrics={**metrics})


def write_chat_eval(output: Path, result: ChatResult) -> StageOutput:
    """Write scores and answers."""
    write_json(output / SCORES_FILE, result.scores())
    write_json(output / ANSWERS_FILE, result.records())
    files: dict[str, Role] = {SCORES_FILE: "result", ANSWERS_FILE: "result"}
    return StageOutput(files=files, metrics={**result.metrics()})


def write_csv(path: Path, rows: Iterable[list[str]]) -> None:
    """Write rows, a header first."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON that people can read."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
