"""What an evaluation of in-context tasks found, example by example, and its records (torch-free).

A record is a JSON value from which a result comes back exactly, so that scores can be kept.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_core.errors import DataError
from nanochat_core.evals.bundle import Task, TaskType

EVAL_VERSION = 1
"""Part of the identity of a kept score: one more with every change that may change an answer."""


@dataclass(frozen=True)
class ExampleResult:
    """One example: `scores` are mean losses of the options, or 1.0/0.0 for language_modeling."""

    row: int
    source_row: int
    gold: int
    predicted: int
    scores: tuple[float, ...]

    @property
    def is_right(self) -> bool:
        """Whether the right option was picked."""
        return self.predicted == self.gold


@dataclass(frozen=True)
class TaskResult:
    """Accuracy on one task, and the same with random guessing moved to 0."""

    task: Task
    examples: tuple[ExampleResult, ...]
    num_cropped: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(example.is_right for example in self.examples) / len(self.examples)

    @property
    def accuracy_stderr(self) -> float:
        """Standard error of the accuracy, as of independent examples."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.examples))

    @property
    def centered(self) -> float:
        """0 is random guessing, 1 is everything right."""
        return (self.accuracy - self.task.baseline) / (1 - self.task.baseline)

    @property
    def centered_stderr(self) -> float:
        """Standard error of the centered accuracy."""
        return self.accuracy_stderr / (1 - self.task.baseline)

    def summary(self) -> dict[str, float | int | str]:
        """The numbers of this task, ready for JSON."""
        return {
            "task_type": self.task.task_type,
            "num_fewshot": self.task.num_fewshot,
            "examples": len(self.examples),
            "accuracy": self.accuracy,
            "accuracy_stderr": self.accuracy_stderr,
            "baseline": self.task.baseline,
            "centered": self.centered,
            "centered_stderr": self.centered_stderr,
            "cropped_prompts": self.num_cropped,
        }

    def record(self) -> dict[str, Any]:
        """Everything but the task, as strict JSON; an infinite score is null."""
        return {
            "cropped_prompts": self.num_cropped,
            "examples": [
                {
                    "source_row": example.source_row,
                    "gold": example.gold,
                    "predicted": example.predicted,
                    "scores": [s if math.isfinite(s) else None for s in example.scores],
                }
                for example in self.examples
            ],
        }

    @classmethod
    def from_record(cls, task: Task, record: Mapping[str, Any]) -> "TaskResult":
        """The result that `record` was made of, bit for bit; DataError for what is no record."""
        try:
            examples = tuple(
                _example_of(row, values) for row, values in enumerate(record["examples"])
            )
            num_cropped = int(record["cropped_prompts"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the kept result of task {task.label} is no record of one ({error!r}); "
                "throw it away and ask again"
            ) from error
        if not examples:
            raise DataError(f"the kept result of task {task.label} has no examples; ask again")
        return cls(task, examples, num_cropped)


@dataclass(frozen=True)
class CoreResult:
    """The score of a whole bundle: the mean of the centered accuracies of its tasks."""

    tasks: tuple[TaskResult, ...]
    is_official: bool

    @property
    def metric_name(self) -> str:
        """`core_metric` for the 22 official tasks, else `demo_score`: they do not compare."""
        return "core_metric" if self.is_official else "demo_score"

    @property
    def score(self) -> float:
        """Mean of the centered accuracies."""
        return sum(result.centered for result in self.tasks) / len(self.tasks)

    @property
    def score_stderr(self) -> float:
        """Standard error of the score: the spread of the examples, the tasks being given."""
        squares = sum(result.centered_stderr**2 for result in self.tasks)
        return math.sqrt(squares) / len(self.tasks)


def predicted_option(task_type: TaskType, scores: Sequence[float]) -> int:
    """What these scores say: the first of the best; -1 is wrong language_modeling."""
    if task_type == "language_modeling":
        return 0 if scores[0] == 1.0 else -1
    return scores.index(min(scores))


def example_rows(result: CoreResult) -> Iterator[list[str]]:
    """Header and one line an example, for a CSV file."""
    yield ["task", "row", "source_row", "gold", "predicted", "is_right", "scores"]
    for task in result.tasks:
        for e in task.examples:
            scores = " ".join(f"{score:.6g}" for score in e.scores)
            numbers = (e.row, e.source_row, e.gold, e.predicted, int(e.is_right))
            yield [task.task.label, *map(str, numbers), scores]


def _example_of(row: int, values: Mapping[str, Any]) -> ExampleResult:
    scores = tuple(math.inf if score is None else float(score) for score in values["scores"])
    return ExampleResult(
        row=row,
        source_row=int(values["source_row"]),
        gold=int(values["gold"]),
        predicted=int(values["predicted"]),
        scores=scores,
    )
