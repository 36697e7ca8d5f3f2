"""Which examples are asked, with which few shots, and which tokens are scored: RECIPE section 5.

Torch-free. A span is the half-open range of token positions of a prompt that decides its score.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat_core.errors import DataError
from nanochat_core.evals.bundle import Example, Option, Task
from nanochat_core.tokenizer.tokenizer import Tokenizer

SHUFFLE_SEED = 1337
FEWSHOT_SEED = 1234
"""Row i draws its few shots with seed 1234 + i, so that every model sees the same prompts."""


@dataclass(frozen=True)
class KeptExample:
    """An example that is asked: its place after shuffling and its line in the file."""

    row: int
    source_row: int
    example: Example


@dataclass(frozen=True)
class Prompt:
    """Tokens of one option and the span that is scored.

    `is_cropped`: the prompt was too long and lost its head. `is_lost`: so did its span.
    """

    tokens: NDArray[np.int32]
    start: int
    end: int
    is_cropped: bool = False

    @property
    def is_lost(self) -> bool:
        """Whether the first token of the span has nothing before it that could predict it."""
        return self.start < 1

    @property
    def is_scored(self) -> bool:
        """Whether there is a span that the model can be asked about."""
        return not self.is_lost and self.end > self.start


def keep_examples(task: Task, examples: Sequence[Example], max_per_task: int) -> list[KeptExample]:
    """Shuffle, keep the first ones (0: all); DataError when few shots cannot be drawn from them."""
    order = list(range(len(examples)))
    random.Random(SHUFFLE_SEED).shuffle(order)
    chosen = order[: max_per_task or None]
    kept = [KeptExample(row, i, examples[i]) for row, i in enumerate(chosen)]
    if task.num_fewshot > len(kept) - 1:
        raise DataError(
            f"task {task.label} shows {task.num_fewshot} other examples in each prompt, but only "
            f"{len(kept)} examples are kept; keep at least {task.num_fewshot + 1}"
        )
    return kept


def few_shots(task: Task, kept: Sequence[KeptExample], row: int) -> list[Example]:
    """The examples that are shown before the one in `row`, never that one itself."""
    others = [other for other in range(len(kept)) if other != row]
    chosen = random.Random(FEWSHOT_SEED + row).sample(others, task.num_fewshot)
    return [kept[other].example for other in chosen]


def build_prompts(
    task: Task, kept: Sequence[KeptExample], row: int, tokenizer: Tokenizer, max_tokens: int
) -> list[Prompt]:
    """One prompt for every option of the example in `row`, at most `max_tokens` long.

    Raises DataError when the tokens of a language_modeling prompt do not begin with those of the
    prompt without its continuation.
    """
    stem = "".join(
        _filled(shot.answer, task.delimiter) + "\n\n" for shot in few_shots(task, kept, row)
    )
    example = kept[row].example
    texts = [stem + _filled(option, task.delimiter) for option in example.options]
    tokens = [_encode(tokenizer, text) for text in texts]
    if task.task_type == "language_modeling":
        question = stem + example.options[0].context + task.delimiter
        starts = [
            _continuation_start(task, kept[row], _encode(tokenizer, question.strip()), tokens)
        ]
    elif task.task_type == "schema":
        shared = _common_suffix(tokens)
        starts = [len(ids) - shared for ids in tokens]
    else:
        starts = [_common_prefix(tokens)] * len(tokens)
    return [crop(ids, start, max_tokens) for ids, start in zip(tokens, starts, strict=True)]


def crop(tokens: NDArray[np.int32], start: int, max_tokens: int) -> Prompt:
    """Keep the last tokens of a prompt that is too long; its span ends where it ends."""
    excess = max(0, len(tokens) - max_tokens)
    return Prompt(tokens[excess:], start - excess, len(tokens) - excess, excess > 0)


def _filled(option: Option, delimiter: str) -> str:
    return option.context + delimiter + option.continuation


def _encode(tokenizer: Tokenizer, text: str) -> NDArray[np.int32]:
    return np.array([tokenizer.bos_id, *tokenizer.encode(text)], dtype=np.int32)


def _continuation_start(
    task: Task, kept: KeptExample, question: NDArray[np.int32], tokens: list[NDArray[np.int32]]
) -> int:
    (whole,) = tokens
    if not np.array_equal(whole[: len(question)], question):
        raise DataError(
            f"{task.data_path}, example {kept.source_row}: with this tokenizer the continuation "
            f"changes the tokens before it, so it cannot be scored alone; let the delimiter of "
            f"task {task.label} ({task.delimiter!r}) end with a space, or remove the example"
        )
    return len(question)


def _common_prefix(sequences: Sequence[NDArray[np.int32]]) -> int:
    shortest = min(len(ids) for ids in sequences)
    same = np.all([ids[:shortest] == sequences[0][:shortest] for ids in sequences], axis=0)
    return shortest if same.all() else int(np.argmin(same))


def _common_suffix(sequences: Sequence[NDArray[np.int32]]) -> int:
    return _common_prefix([ids[::-1] for ids in sequences])
