"""The in-context benchmark CORE and its small cousins: RECIPE section 5 (DCLM, arXiv:2406.11794).

Shapes: N examples, K options.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat_core.distributed.collectives import sum_numbers
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError
from nanochat_core.evals.bundle import Bundle, Task
from nanochat_core.evals.core_prompts import (
    KeptExample,
    Prompt,
    build_prompts,
    keep_examples,
    share_rows,
)
from nanochat_core.evals.core_results import (
    CoreResult,
    ExampleResult,
    TaskResult,
    predicted_option,
)
from nanochat_core.evals.core_scoring import Asker
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer

OnProgress = Callable[[int, str], None]
"""Told how many examples this rank has done in all, and the task it is at."""
OnTask = Callable[[TaskResult], None]
"""Told each result that was asked for, on every rank, as soon as it is there."""


def evaluate_core(  # noqa: PLR0913  what is asked of whom, and two who are told
    model: GPT,
    tokenizer: Tokenizer,
    bundle: Bundle,
    ranks: Ranks,
    *,
    max_per_task: int,
    batch_tokens: int,
    known: Mapping[str, TaskResult] | None = None,
    on_task: OnTask = lambda _: None,
    on_progress: OnProgress = lambda *_: None,
) -> CoreResult:
    """Ask the model every task of a bundle; every rank gets the whole result.

    `max_per_task` examples of each task are kept after shuffling (0: all); `batch_tokens` bounds
    the tokens of a forward pass and changes the result by rounding alone. Tasks in `known` (by
    label; the same on every rank) are taken as they are and not asked. Raises DataError for a task
    that cannot be read or asked, before that task's first forward pass.
    """
    if max_per_task < 0 or batch_tokens < 1:
        raise ConfigError(f"max_per_task={max_per_task} must be at least 0 (all), batch_tokens="
                          f"{batch_tokens} at least 1")  # fmt: skip
    known = known or {}
    results: list[TaskResult] = []
    interview: _Interview | None = None
    for task in bundle.tasks:
        if task.label in known:
            results.append(known[task.label])
            continue
        if interview is None:
            interview = _Interview(
                Asker(model), tokenizer, ranks, max_per_task, batch_tokens, on_progress
            )
        results.append(interview.ask(task, model.max_positions))
        on_task(results[-1])
    return CoreResult(tuple(results), bundle.is_official)


@dataclass
class _Interview:
    """One evaluation on one rank, task by task."""

    asker: Asker
    tokenizer: Tokenizer
    ranks: Ranks
    max_per_task: int
    batch_tokens: int
    on_progress: OnProgress
    num_done: int = 0

    def ask(self, task: Task, max_tokens: int) -> TaskResult:
        """The result of a task, of which this rank asks its share."""
        kept = keep_examples(task, task.read_examples(), self.max_per_task)
        own_rows = share_rows(task, kept, self.ranks.world_size)[self.ranks.rank]
        prompts = [build_prompts(task, kept, row, self.tokenizer, max_tokens) for row in own_rows]
        num_prompts, num_settled = sum(map(len, prompts)), 0

        def on_prompts(count: int) -> None:
            nonlocal num_settled
            num_settled += count
            num_examples = num_settled * len(prompts) // num_prompts
            self.on_progress(self.num_done + num_examples, task.label)

        scores = self.asker.scores(
            prompts, task.task_type, batch_tokens=self.batch_tokens, on_done=on_prompts
        )
        result = _gather(task, kept, dict(zip(own_rows, scores, strict=True)), prompts, self.ranks)
        self.num_done += len(prompts)
        self.on_progress(self.num_done, task.label)
        return result


def _gather(
    task: Task,
    kept: Sequence[KeptExample],
    own_scores: Mapping[int, tuple[float, ...]],
    prompts: Sequence[Sequence[Prompt]],
    ranks: Ranks,
) -> TaskResult:
    """Put the ranks' scores together; every rank then judges the same numbers."""
    num_options = max(len(item.example.options) for item in kept)
    scores_NK = np.zeros((len(kept), num_options))
    for row, scores in own_scores.items():
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
    return ExampleResult(
        row=kept.row,
        source_row=kept.source_row,
        gold=example.gold,
        predicted=predicted_option(task.task_type, scores),
        scores=scores,
    )


def count_examples(bundle: Bundle, max_per_task: int) -> int:
    """How many examples `evaluate_core` will ask in all; reads, and so checks, every file."""
    return sum(
        len(keep_examples(task, task.read_examples(), max_per_task)) for task in bundle.tasks
    )
