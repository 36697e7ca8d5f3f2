"""The in-context benchmark CORE and its small cousins: RECIPE section 5 (DCLM, arXiv:2406.11794).

Shapes: N examples, K options.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat_core.distributed.collectives import sum_numbers
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError
from nanochat_core.evals.bundle import Bundle, Task
from nanochat_core.evals.core_prompts import KeptExample, Prompt, build_prompts, keep_examples
from nanochat_core.evals.core_scoring import span_losses, span_matches
from nanochat_core.model.gpt import GPT
from nanochat_core.model.rotary import MAX_LENGTH_FACTOR
from nanochat_core.tokenizer.tokenizer import Tokenizer

OnProgress = Callable[[int, str], None]
"""Told how many examples this rank has done in all, and the task it is at."""


@dataclass(frozen=True)
class ExampleResult:
    """One example: `scores` are mean losses of the options, or 1.0/0.0 for language_modeling."""

    row: int
    source_row: int
    gold: int
    predicted: int
    is_right: bool
    scores: tuple[float, ...]


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


def evaluate_core(
    model: GPT,
    tokenizer: Tokenizer,
    bundle: Bundle,
    ranks: Ranks,
    *,
    max_per_task: int,
    batch_tokens: int,
    max_prompt_tokens: int | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> CoreResult:
    """Ask the model every task of a bundle; every rank gets the whole result.

    `max_per_task` examples of each task are kept after shuffling (0: all); `batch_tokens` bounds
    the tokens of a forward pass and does not change the result; `max_prompt_tokens` is the hard
    limit of a model that has one, else ten times its sequence length. Raises DataError for a
    task that cannot be read or asked, before that task's first forward pass.
    """
    longest = MAX_LENGTH_FACTOR * model.config.sequence_len
    max_tokens = min(longest, max_prompt_tokens or longest)
    if max_per_task < 0 or batch_tokens < 1:
        raise ConfigError(f"max_per_task={max_per_task} must be at least 0 (all), batch_tokens="
                          f"{batch_tokens} at least 1")  # fmt: skip
    results: list[TaskResult] = []
    num_done = 0

    for task in bundle.tasks:

        def on_examples(count: int, label: str = task.label, before: int = num_done) -> None:
            on_progress(before + count, label)

        kept = keep_examples(task, task.read_examples(), max_per_task)
        own = range(ranks.rank, len(kept), ranks.world_size)
        prompts = [build_prompts(task, kept, row, tokenizer, max_tokens) for row in own]
        scores_NK = _scores(model, task, prompts, batch_tokens=batch_tokens, on_done=on_examples)
        results.append(_gather(task, kept, prompts, scores_NK, ranks))
        num_done += len(own)
        on_progress(num_done, task.label)
    return CoreResult(tuple(results), bundle.is_official)


def _scores(
    model: GPT,
    task: Task,
    prompts: Sequence[Sequence[Prompt]],
    *,
    batch_tokens: int,
    on_done: Callable[[int], None],
) -> list[tuple[float, ...]]:
    """Scores of the options of this rank's examples."""
    flat = [prompt for options in prompts for prompt in options]
    num_settled = 0

    def count_examples(num_prompts: int) -> None:
        nonlocal num_settled
        num_settled += num_prompts
        on_done(num_settled * len(prompts) // len(flat))

    ask = span_matches if task.task_type == "language_modeling" else span_losses
    flat_scores = iter(ask(model, flat, batch_tokens=batch_tokens, on_done=count_examples))
    return [tuple(float(next(flat_scores)) for _ in options) for options in prompts]


def _gather(
    task: Task,
    kept: Sequence[KeptExample],
    prompts: Sequence[Sequence[Prompt]],
    own_scores: Sequence[tuple[float, ...]],
    ranks: Ranks,
) -> TaskResult:
    """Put the ranks' scores together; every rank then judges the same numbers."""
    num_options = max(len(item.example.options) for item in kept)
    scores_NK = np.zeros((len(kept), num_options))
    own_rows = range(ranks.rank, len(kept), ranks.world_size)
    for row, scores in zip(own_rows, own_scores, strict=True):
        scores_NK[row, : len(scores)] = scores
    cropped = sum(prompt.is_cropped for options in prompts for prompt in options)
    # Places of other ranks are 0, so the sum hands every score on unchanged.
    *all_scores, num_cropped = sum_numbers([*scores_NK.flatten().tolist(), float(cropped)], ranks)
    scores_NK = np.array(all_scores).reshape(scores_NK.shape)
    examples = tuple(_judge(task, item, scores_NK[item.row]) for item in kept)
    return TaskResult(task, examples, int(num_cropped))


def _judge(task: Task, kept: KeptExample, scores_K: NDArray[np.float64]) -> ExampleResult:
    example = kept.example
    scores = tuple(scores_K[: len(example.options)].tolist())
    if task.task_type == "language_modeling":
        predicted = 0 if scores[0] == 1.0 else -1
    else:
        predicted = scores.index(min(scores))  # the first one on ties
    return ExampleResult(
        row=kept.row,
        source_row=kept.source_row,
        gold=example.gold,
        predicted=predicted,
        is_right=predicted == example.gold,
        scores=scores,
    )


def example_rows(result: CoreResult) -> Iterator[list[str]]:
    """Header and one line an example, for a CSV file."""
    yield ["task", "row", "source_row", "gold", "predicted", "is_right", "scores"]
    for task in result.tasks:
        for e in task.examples:
            scores = " ".join(f"{score:.6g}" for score in e.scores)
            numbers = (e.row, e.source_row, e.gold, e.predicted, int(e.is_right))
            yield [task.task.label, *map(str, numbers), scores]


def count_examples(bundle: Bundle, max_per_task: int) -> int:
    """How many examples `evaluate_core` will ask in all; reads, and so checks, every file."""
    return sum(
        len(keep_examples(task, task.read_examples(), max_per_task)) for task in bundle.tasks
    )
