"""What a report is made of: manifests, folders and how this run went. Any part may be missing."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nanochat_core.artifacts.types import Manifest
from nanochat_core.config.job import METRICS_FILE
from nanochat_core.report.numbers import is_number
from nanochat_core.report.scores import Answer, Score, read_scores

ORDER = (
    "shards",
    "tokenizer",
    "tokens",
    "benchmarks",
    "pretrain",
    "base_eval",
    "sft",
    "chat_eval_sft",
    "rl",
    "chat_eval_rl",
)
"""Stations as the line makes them; any other comes after these."""
TRAINING = ("pretrain", "sft", "rl")
CHAT_EVALS = ("chat_eval_sft", "chat_eval_rl")
BASE_SCORES = ("val/bpb", "core_metric", "demo_score")
SCORES_FILE, SAMPLES_FILE, ANSWERS_FILE = "scores.json", "samples.json", "answers.json"
CONFIG_FILE, ROLLOUTS_FILE = "config.json", "rollouts.parquet"

ROLLOUT_COLUMNS = ("step", "question", "reply", "reward")


@dataclass(frozen=True)
class StageRow:
    """How one stage of this run went, for the table of stages."""

    station: str
    state: str
    seconds: float
    numbers: str = ""
    artifact: str = ""


@dataclass(frozen=True)
class Series:
    """One metric over the steps of one training."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Material:
    """Everything that a report says, by station; files are read when they are asked for."""

    manifests: Mapping[str, Manifest]
    folders: Mapping[str, Path]
    rows: Sequence[StageRow] = ()
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stations(self) -> list[str]:
        """Stations that are there, in the order of the line."""
        known = [name for name in ORDER if name in self.manifests]
        return known + sorted(set(self.manifests) - set(ORDER))

    def metric(self, station: str, name: str) -> Any:
        """One key number of a station, or None."""
        manifest = self.manifests.get(station)
        return None if manifest is None else manifest.metrics.get(name)

    def base_scores(self) -> dict[str, Score]:
        """Scores of the base model by name."""
        found = read_scores(self._flat_scores("base_eval"))
        return {name: found[name] for name in BASE_SCORES if name in found}

    def chat_scores(self, station: str) -> dict[str, Score]:
        """Scores of a chat model by name."""
        return read_scores(self._flat_scores(station))

    def _flat_scores(self, station: str) -> dict[str, Any]:
        manifest = self.manifests.get(station)
        if manifest is None:
            return {}
        content = self.json(station, SCORES_FILE)
        values = content if isinstance(content, Mapping) else {}
        # Numbers of the file win; those of the manifest are the fewer ones.
        return {**manifest.metrics, **{k: v for k, v in values.items() if is_number(v)}}

    def base_tasks(self) -> dict[str, Score]:
        """Accuracy of the base model on each of its in-context tasks."""
        content = self.json("base_eval", SCORES_FILE)
        tasks = content.get("tasks", {}) if isinstance(content, Mapping) else {}
        return {
            label: Score(task["accuracy"], task.get("accuracy_stderr"), task.get("examples"))
            for label, task in tasks.items()
            if is_number(task.get("accuracy"))
        }

    def samples(self) -> list[dict[str, Any]]:
        """Completions of the base model."""
        return _entries(self.json("base_eval", SAMPLES_FILE))

    def answers(self, station: str) -> list[Answer]:
        """Questions with replies, in the order in which they were asked."""
        return list(_entries(self.json(station, ANSWERS_FILE)))

    def rollouts(self, number: int) -> list[Answer]:
        """`number` replies of RL with their rewards: the first, the last, and evenly between."""
        path = self._path("rl", ROLLOUTS_FILE)
        return [] if path is None else _spread_rows(path, number)

    def series(self, station: str, *names: str) -> Series:
        """The first of these metrics that was logged, over steps; values that are none left out."""
        lines = self._lines(station, METRICS_FILE)
        for name in names:
            points = {
                int(line["step"]): float(line[name])
                for line in lines
                if is_number(line.get("step")) and is_number(line.get(name))
                if math.isfinite(line[name])
            }
            if points:
                return Series(tuple(sorted(points)), tuple(points[step] for step in sorted(points)))
        return Series()

    def metric_names(self, station: str) -> list[str]:
        """Every metric that a training logged."""
        return sorted({name for line in self._lines(station, METRICS_FILE) for name in line})

    def json(self, station: str, name: str) -> Any:
        """A JSON file of an artifact; None when the artifact has no such file."""
        path = self._path(station, name)
        return None if path is None else json.loads(path.read_bytes())

    def _lines(self, station: str, name: str) -> list[dict[str, Any]]:
        path = self._path(station, name)
        if path is None:
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        return _entries([json.loads(line) for line in lines if line.strip()])

    def _path(self, station: str, name: str) -> Path | None:
        """A file that the manifest lists: what else lies in the folder is nobody's."""
        manifest = self.manifests.get(station)
        if manifest is None or name not in {file.path for file in manifest.files}:
            return None
        return self.folders[station] / name


def _entries(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        return []
    return [entry for entry in content if isinstance(entry, dict)]


def _spread_rows(path: Path, number: int) -> list[Answer]:
    """Rows of a parquet file at even distances; of a large file only their row groups are read."""
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        last, rows = sum(sizes) - 1, []
        wanted = {round(i * last / max(number - 1, 1)) for i in range(number)} if last >= 0 else ()
        for row in sorted(wanted):
            group = next(i for i in range(len(sizes)) if row < sum(sizes[: i + 1]))
            table = file.read_row_group(group, columns=list(ROLLOUT_COLUMNS))
            rows += table.slice(row - sum(sizes[:group]), 1).to_pylist()
    return rows
