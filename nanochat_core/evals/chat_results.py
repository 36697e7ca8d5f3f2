"""What the answers to benchmarks add up to (torch-free)."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nanochat_core.benchmarks.names import OFFICIAL_TEST_ROWS


@dataclass(frozen=True)
class ProblemResult:
    """One problem: what was asked, what the model said, what the reference says."""

    benchmark: str
    index: int
    kind: str
    """The benchmark's name; of identity what was asked for: name, depth, parameters."""
    question: str
    reply: str
    reference: str
    score: float
    is_cropped: bool

    def answer_record(self) -> dict[str, Any]:
        """One entry of answers.json."""
        return {
            "benchmark": self.benchmark,
            "index": self.index,
            "kind": self.kind,
            "question": self.question,
            "answer": self.reply,
            "reference": self.reference,
            "score": self.score,
            "right": self.score == 1.0,
        }


@dataclass(frozen=True)
class BenchmarkResult:
    """Every problem of a benchmark, in order."""

    name: str
    baseline: float
    problems: tuple[ProblemResult, ...]

    @property
    def num_right(self) -> int:
        """How many problems were answered rightly."""
        return sum(problem.score == 1.0 for problem in self.problems)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.num_right / len(self.problems)

    @property
    def accuracy_stderr(self) -> float:
        """Standard error of the accuracy, as of independent problems."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.problems))

    @property
    def centered(self) -> float:
        """0 is guessing, 1 is everything right."""
        return (self.accuracy - self.baseline) / (1 - self.baseline)

    @property
    def centered_stderr(self) -> float:
        """Standard error of the centered accuracy."""
        return self.accuracy_stderr / (1 - self.baseline)

    def kinds(self) -> dict[str, "BenchmarkResult"]:
        """The same by kind of question; empty where all are of one kind."""
        by_kind: dict[str, list[ProblemResult]] = {}
        for problem in self.problems:
            by_kind.setdefault(problem.kind, []).append(problem)
        if by_kind.keys() == {self.name}:
            return {}
        return {
            kind: BenchmarkResult(kind, self.baseline, tuple(problems))
            for kind, problems in by_kind.items()
        }

    def summary(self) -> dict[str, float | int]:
        """The numbers of this benchmark, ready for JSON."""
        return {
            "asked": len(self.problems),
            "right": self.num_right,
            "accuracy": self.accuracy,
            "accuracy_stderr": self.accuracy_stderr,
            "baseline": self.baseline,
            "centered": self.centered,
            "centered_stderr": self.centered_stderr,
            "cropped_prompts": sum(problem.is_cropped for problem in self.problems),
        }

    def record(self) -> dict[str, Any]:
        """Everything there is to know of it, ready for JSON."""
        problems = [asdict(problem) for problem in self.problems]
        return {"name": self.name, "baseline": self.baseline, "problems": problems}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "BenchmarkResult":
        """What `record` was made of; KeyError, TypeError or ValueError for anything else."""
        problems = tuple(ProblemResult(**problem) for problem in record["problems"])
        if not problems:
            raise ValueError("no problem was asked")
        return cls(record["name"], record["baseline"], problems)


@dataclass(frozen=True)
class ChatResult:
    """Benchmarks in the order in which they were asked, and one score over them."""

    benchmarks: tuple[BenchmarkResult, ...]

    @property
    def is_official(self) -> bool:
        """Whether the five benchmarks of ChatCORE were all asked with all their test rows."""
        asked = {result.name: len(result.problems) for result in self.benchmarks}
        return asked.items() >= OFFICIAL_TEST_ROWS.items()

    @property
    def metric_name(self) -> str:
        """`chatcore_metric` for the official five, else `demo_score`: they do not compare."""
        return "chatcore_metric" if self.is_official else "demo_score"

    @property
    def score(self) -> float:
        """Mean of the centered accuracies: of the official five alone, or of all that were asked.

        ChatCORE is RECIPE section 6.
        """
        scored = self._scored()
        return sum(result.centered for result in scored) / len(scored)

    @property
    def score_stderr(self) -> float:
        """Standard error of the score: the spread of the problems, the benchmarks being given."""
        scored = self._scored()
        return math.sqrt(sum(result.centered_stderr**2 for result in scored)) / len(scored)

    def metrics(self) -> dict[str, float | int]:
        """The key numbers of the evaluation by name."""
        numbers: dict[str, float | int] = {}
        for result in self.benchmarks:
            numbers |= _numbers(result)
        numbers[self.metric_name] = self.score
        numbers[f"{self.metric_name}/stderr"] = self.score_stderr
        return numbers

    def scores(self) -> dict[str, Any]:
        """The content of scores.json: the metrics, and more of each benchmark."""
        scores: dict[str, Any] = self.metrics()
        for result in self.benchmarks:
            for kind in result.kinds().values():
                scores |= _numbers(kind)
        return {
            **scores,
            "benchmarks": {result.name: result.summary() for result in self.benchmarks},
        }

    def records(self) -> list[dict[str, Any]]:
        """The content of answers.json."""
        problems = (problem for result in self.benchmarks for problem in result.problems)
        return [problem.answer_record() for problem in problems]

    def _scored(self) -> list[BenchmarkResult]:
        if not self.is_official:
            return list(self.benchmarks)
        return [result for result in self.benchmarks if result.name in OFFICIAL_TEST_ROWS]


def _numbers(result: BenchmarkResult) -> dict[str, float | int]:
    return {
        result.name: result.accuracy,
        f"{result.name}/stderr": result.accuracy_stderr,
        f"{result.name}/right": result.num_right,
        f"{result.name}/asked": len(result.problems),
    }


def chat_lines(scores: Mapping[str, Any]) -> list[str]:
    """scores.json of a chat evaluation as a table for people."""
    columns = ("asked", "right", "accuracy", "accuracy_stderr", "centered", "centered_stderr")
    rows = [("benchmark", *columns)]
    for name, summary in scores["benchmarks"].items():
        rows.append((name, *(_cell(summary[column]) for column in columns)))
    for name in ("chatcore_metric", "demo_score"):
        if name in scores:
            mean, stderr = _cell(scores[name]), _cell(scores[f"{name}/stderr"])
            rows.append((name, "", "", "", "", mean, stderr))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def _cell(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
