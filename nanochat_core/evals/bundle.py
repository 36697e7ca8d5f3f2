"""Read an evaluation bundle in the layout of CORE (DCLM, arXiv:2406.11794) (torch-free).

A bundle is a folder: `core.yaml` lists the tasks, `eval_meta_data.csv` their random baselines in
percent, `eval_data/<dataset_uri>` one example a line. Whatever its type, an example is a few
options, each a context and a continuation, and the number of the right one.
"""

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from nanochat_core.errors import DataError

TaskType = Literal["multiple_choice", "schema", "language_modeling"]

OFFICIAL_TASKS = frozenset(
    {
        "agi_eval_lsat_ar",
        "arc_challenge",
        "arc_easy",
        "bigbench_cs_algorithms",
        "bigbench_dyck_languages",
        "bigbench_language_identification",
        "bigbench_operators",
        "bigbench_qa_wikidata",
        "bigbench_repeat_copy_logic",
        "boolq",
        "commonsense_qa",
        "copa",
        "coqa",
        "hellaswag",
        "hellaswag_zeroshot",
        "jeopardy",
        "lambada_openai",
        "openbook_qa",
        "piqa",
        "squad",
        "winograd",
        "winogrande",
    }
)
"""The 22 tasks whose mean is CORE: the low-variance set of DCLM (arXiv:2406.11794)."""


@dataclass(frozen=True)
class Option:
    """One way to fill a prompt in: `context + delimiter + continuation`."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Example:
    """Options that are compared, and the index of the right one."""

    options: tuple[Option, ...]
    gold: int

    @property
    def answer(self) -> Option:
        """The right option, which few-shot prompts show."""
        return self.options[self.gold]


@dataclass(frozen=True)
class Task:
    """One task; `baseline` is the accuracy of a random guess, as a fraction."""

    label: str
    task_type: TaskType
    num_fewshot: int
    delimiter: str
    baseline: float
    data_path: Path

    def read_examples(self) -> list[Example]:
        """Every example of the file, in file order; raises DataError naming file and line."""
        lines = _read_text(self.data_path).split("\n")
        examples = [
            _parse_example(self, number, line)
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        if not examples:
            raise DataError(f"{self.data_path} has no examples; task {self.label} needs some")
        return examples


@dataclass(frozen=True)
class Bundle:
    """The tasks of one bundle, in the order of its `core.yaml`."""

    tasks: tuple[Task, ...]

    @property
    def is_official(self) -> bool:
        """Whether these are the 22 CORE tasks, so that the score may be called CORE."""
        labels = [task.label for task in self.tasks]
        return len(labels) == len(OFFICIAL_TASKS) and set(labels) == OFFICIAL_TASKS


def task_digest(task: Task) -> str:
    """Sha256 of everything about a task that decides its results; neither label nor place does.

    Equal digests mean equal examples in equal order, asked and judged in the same way.
    """
    digest = hashlib.sha256()
    rules = [task.task_type, task.num_fewshot, task.delimiter, task.baseline]
    digest.update(json.dumps(rules).encode())
    for line in _read_text(task.data_path).split("\n"):
        if line.strip():
            digest.update(b"\n" + line.strip().encode())
    return digest.hexdigest()


def read_bundle(folder: Path) -> Bundle:
    """Read the list of tasks; examples are read by each task when it is evaluated.

    Raises DataError for a file that is missing or malformed, a task without a baseline, a task
    type that is not known, a path outside the bundle or a label used twice.
    """
    path = folder / "core.yaml"
    try:
        listing = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML: {error}") from error
    entries = listing.get("icl_tasks") if isinstance(listing, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} needs a list `icl_tasks` with at least one task")
    percents = _read_baselines(folder / "eval_meta_data.csv")
    tasks = tuple(_parse_task(path, entry, percents) for entry in entries)
    labels = [task.label for task in tasks]
    if len(set(labels)) != len(labels):
        raise DataError(f"{path} uses a label twice: {', '.join(sorted(labels))}")
    return Bundle(tasks)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason})") from error


def _read_baselines(path: Path) -> dict[str, str]:
    rows = list(csv.DictReader(io.StringIO(_read_text(path), newline="")))
    if not rows or not {"Eval Task", "Random baseline"} <= rows[0].keys():
        raise DataError(f"{path} needs rows with the columns 'Eval Task' and 'Random baseline'")
    return {row["Eval Task"]: row["Random baseline"] for row in rows}


def _baseline(path: Path, label: str, percents: dict[str, str]) -> float:
    if label not in percents:
        raise DataError(f"task {label} of {path} has no row in eval_meta_data.csv; add one")
    try:
        fraction = float(percents[label]) / 100
    except (TypeError, ValueError):
        fraction = -1.0
    if not 0 <= fraction < 1:
        raise DataError(
            f"eval_meta_data.csv beside {path}: the random baseline of {label} is "
            f"{percents[label]!r}; expected a percentage from 0 to below 100"
        )
    return fraction


def _parse_task(path: Path, entry: Any, percents: dict[str, str]) -> Task:
    try:
        label, uri, kind = entry["label"], entry["dataset_uri"], entry["icl_task_type"]
        num_fewshot, delimiter = entry["num_fewshot"][0], entry.get("continuation_delimiter", " ")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path}: the task {entry!r} needs label, dataset_uri, icl_task_type and a list "
            f"num_fewshot (missing or malformed: {error})"
        ) from error
    if kind not in get_args(TaskType):
        raise DataError(
            f"{path}: task {label} has the type {kind!r}; known are {', '.join(get_args(TaskType))}"
        )
    if not isinstance(num_fewshot, int) or num_fewshot < 0 or not isinstance(delimiter, str):
        raise DataError(f"{path}: task {label} has num_fewshot={num_fewshot!r} or a delimiter "
                        f"{delimiter!r} that is no text")  # fmt: skip
    data_folder = path.parent / "eval_data"
    data_path = data_folder / str(uri)
    if not data_path.resolve().is_relative_to(data_folder.resolve()):
        raise DataError(f"{path}: task {label} points outside the bundle: {uri}")
    return Task(label, kind, num_fewshot, delimiter, _baseline(path, label, percents), data_path)


def _parse_example(task: Task, number: int, line: str) -> Example:
    try:
        row = json.loads(line)
        options = tuple(_options(task.task_type, row))
        gold = 0 if task.task_type == "language_modeling" else row["gold"]
        if type(gold) is not int or not 0 <= gold < len(options):
            raise ValueError(f"gold={gold!r} is not the number of one of {len(options)} options")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{task.data_path}, line {number}: not a {task.task_type} example ({reason})"
        ) from error
    return Example(options, gold)


def _options(task_type: TaskType, row: dict[str, Any]) -> list[Option]:
    if task_type == "multiple_choice":
        return [Option(_text(row["query"]), _text(choice)) for choice in row["choices"]]
    if task_type == "schema":
        continuation = _text(row["continuation"])
        return [Option(_text(context), continuation) for context in row["context_options"]]
    return [Option(_text(row["context"]).strip(), _text(row["continuation"]))]


def _text(value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise TypeError(f"expected text, got {value!r}")
    return str(cast(object, value))
