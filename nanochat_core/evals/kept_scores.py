"""Scores that outlive the run that found them (torch-free).

What a model scores on a task follows from its weights, its tokenizer, the task and the way it is
asked: that is the request of an artifact of the station `score`, a file with the answer to every
example. A job gets what is known already in a folder, and leaves there what it finds out, task by
task, so that whatever ends it costs no more than the task it was at. Whoever started the job takes
the scores from there into the store.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from nanochat_core.artifacts.canonical import canonical_json, sha256_hex
from nanochat_core.artifacts.types import SCORE_STATION, Request
from nanochat_core.benchmarks.names import FROM_FILES, BenchmarkName
from nanochat_core.errors import DataError
from nanochat_core.evals.bundle import Bundle, Task, task_digest
from nanochat_core.evals.chat_results import BenchmarkResult
from nanochat_core.evals.core_results import EVAL_VERSION, TaskResult
from nanochat_core.evals.recipes import BaseEvalRecipe, ChatEvalRecipe

log = logging.getLogger(__name__)

RECORD_FILE = "score.json"
SCORES_INPUT = "scores"
"""Input of a job: the folder in which scores are handed to and fro."""
ASKED_FILE = "asked.json"
PUBLISHED = ".published"
SHOWN = ("accuracy", "accuracy_stderr", "examples", "asked")
"""Numbers of a score that a list of artifacts shows."""
CHAT_VERSION = 1
"""One more with every change that may change an answer to a benchmark, or what it is worth."""
WEIGHTS_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = ("ranks.tiktoken", "tokenizer.json")
LETTERS = frozenset({"arc-easy", "arc-challenge", "mmlu"})
"""Benchmarks that are answered without writing, so that no limit of tokens matters."""


@dataclass(frozen=True)
class ScoredModel:
    """The digests of what answers: equal ones answer alike."""

    weights: str
    tokenizer: str


def content_digest(folder: Path, names: Iterable[str], known: Mapping[str, str]) -> str:
    """Sha256 over some files of a folder, wherever it lies; `known` is name -> sha256 of some."""
    found = {name: known.get(name) or _sha256(folder / name) for name in names}
    return sha256_hex(canonical_json(found))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def core_requests(bundle: Bundle, recipe: BaseEvalRecipe, model: ScoredModel) -> dict[str, Request]:
    """What each task of a bundle asks for, by label."""
    return {
        task.label: _request(
            model,
            EVAL_VERSION,
            kind="core",
            task=task_digest(task),
            # All of a small task are as many as its first thousand.
            examples=_num_kept(task, recipe.max_per_task),
            compute_dtype=recipe.compute_dtype,
        )
        for task in bundle.tasks
    }


def chat_request(
    name: BenchmarkName, problems: str, recipe: ChatEvalRecipe, model: ScoredModel
) -> Request:
    """What a benchmark with these `problems` (their digest) asks for."""
    return _request(
        model,
        CHAT_VERSION,
        kind="chat",
        benchmark=name,
        problems=problems,
        count=(recipe.count(name) or 0) if name in FROM_FILES else 0,
        max_new_tokens=0 if name in LETTERS else recipe.max_new_tokens,
        compute_dtype=recipe.compute_dtype,
    )


def _request(model: ScoredModel, version: int, **recipe: Any) -> Request:
    inputs = {"weights": model.weights, "tokenizer": model.tokenizer}
    return Request(station=SCORE_STATION, code_version=version, recipe=recipe, inputs=inputs)


def _num_kept(task: Task, max_per_task: int) -> int:
    with task.data_path.open("rb") as file:
        num_examples = sum(bool(line.strip()) for line in file)
    return min(num_examples, max_per_task or num_examples)


@dataclass(frozen=True)
class KeptScores:
    """A folder with a file for each score: `asked` is the name of what is asked -> that file."""

    folder: Path
    asked: Mapping[str, str]

    @classmethod
    def begin(cls, folder: Path, requests: Mapping[str, Request]) -> "KeptScores":
        """Make a folder ready for what is asked now; what lies there already stays."""
        folder.mkdir(parents=True, exist_ok=True)
        scores = cls(folder, {name: request.fingerprint for name, request in requests.items()})
        _write(folder / ASKED_FILE, scores.asked)
        return scores

    @classmethod
    def of(cls, inputs: Mapping[str, str]) -> "KeptScores":
        """What a job was given; without a folder nothing is known, and nothing is kept."""
        if SCORES_INPUT not in inputs:
            return cls(Path(), {})
        folder = Path(inputs[SCORES_INPUT])
        return cls(folder, json.loads((folder / ASKED_FILE).read_bytes()))

    def path(self, name: str) -> Path:
        """Where the score of what is asked lies, once it is known."""
        return self.folder / f"{self.asked[name]}.json"

    def marker(self, name: str) -> Path:
        """What lies beside a score that the store has."""
        return self.path(name).with_suffix(PUBLISHED)

    def record(self, name: str) -> dict[str, Any] | None:
        """The score of what is asked, if it is known."""
        if name not in self.asked or not self.path(name).is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(self.path(name).read_bytes())["score"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the kept score of %s cannot be read, and is asked anew: %s", name, error)
            return None
        return found

    def keep(
        self, name: str, record: Mapping[str, Any], summary: Mapping[str, float | int | str]
    ) -> None:
        """Leave a score behind, whole or not at all; `summary` has some numbers for people."""
        if name in self.asked:
            shown = {key: summary[key] for key in SHOWN if key in summary}
            _write(self.path(name), {"name": name, "shown": shown, "score": record})

    def known_tasks(self, bundle: Bundle) -> dict[str, TaskResult]:
        """Results of the tasks that need not be asked, by label."""
        found = {}
        for task in bundle.tasks:
            if record := self.record(task.label):
                try:
                    found[task.label] = TaskResult.from_record(task, record)
                except DataError as error:
                    log.warning("%s", error)
        return found

    def known_benchmarks(self, names: Iterable[str]) -> dict[str, BenchmarkResult]:
        """Results of the benchmarks that need not be asked, by name."""
        found = {}
        for name in names:
            if record := self.record(name):
                try:
                    found[name] = BenchmarkResult.from_record(record)
                except (KeyError, TypeError, ValueError) as error:
                    log.warning("the kept score of %s is none, and is asked anew: %r", name, error)
        return found


def forget_published(folder: Path) -> None:
    """Remove the scores of a folder that the store has, too."""
    for marker in folder.glob(f"*{PUBLISHED}"):
        marker.with_suffix(".json").unlink(missing_ok=True)
        marker.unlink()


def _write(path: Path, value: Any) -> None:
    temporary = path.with_name(f"{path.name}.{uuid4().hex}")
    temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)
