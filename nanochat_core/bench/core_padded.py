"""CORE the simple way, to measure against: the options of an example as one padded batch.

That is what the reference does (RECIPE section 5). Its head makes every logit of the batch; the one
here does so in chunks that stay in a CPU's cache, which is quicker.

Shapes: K options, T positions.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch

from nanochat_core.evals.bundle import Bundle, TaskType
from nanochat_core.evals.core_prompts import Prompt, build_prompts, keep_examples
from nanochat_core.model.gpt import GPT
from nanochat_core.model.loss import IGNORE_TARGET
from nanochat_core.tokenizer.tokenizer import Tokenizer

Scores = list[tuple[float, ...]]


def ask_padded(
    model: GPT, tokenizer: Tokenizer, bundle: Bundle, max_per_task: int
) -> list[tuple[float, Scores]]:
    """Seconds of each task, and the scores of the options of each of its examples."""
    found = []
    for task in bundle.tasks:
        started = time.perf_counter()
        kept = keep_examples(task, task.read_examples(), max_per_task)
        scores = [
            padded_scores(
                model,
                build_prompts(task, kept, item.row, tokenizer, model.max_positions),
                task.task_type,
            )
            for item in kept
        ]
        found.append((time.perf_counter() - started, scores))
    return found


@torch.no_grad()
def padded_scores(model: GPT, options: Sequence[Prompt], task_type: TaskType) -> tuple[float, ...]:
    """Scores of the options of one example, as `core_scoring` defines them."""
    is_language = task_type == "language_modeling"
    length = max(1, *(len(prompt.tokens) - 1 for prompt in options))
    tokens_KT = np.zeros((len(options), length), dtype=np.int64)
    targets_KT = np.full((len(options), length), IGNORE_TARGET, dtype=np.int64)
    for row, prompt in enumerate(options):
        tokens_KT[row, : len(prompt.tokens) - 1] = prompt.tokens[:-1]
        if prompt.is_scored:
            span = slice(prompt.start - 1, prompt.end - 1)
            targets_KT[row, span] = prompt.tokens[prompt.start : prompt.end]
    tokens, targets = (torch.from_numpy(ids).to(model.device) for ids in (tokens_KT, targets_KT))
    if is_language:
        is_right_KT = (model(tokens).argmax(dim=-1) == targets) | (targets == IGNORE_TARGET)
        return tuple(
            float(is_right and prompt.is_scored)
            for is_right, prompt in zip(is_right_KT.all(dim=1).tolist(), options, strict=True)
        )
    sums = model(tokens, targets, reduction="none").double().sum(dim=1).tolist()
    return tuple(
        total / (prompt.end - prompt.start) if prompt.is_scored else float("inf")
        for total, prompt in zip(sums, options, strict=True)
    )
