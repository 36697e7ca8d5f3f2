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
AHEAD = 16
"""Characters that texts must share beyond a stem for its end to be the same in all of them: a split
pattern looks to the end of a run of letters, spaces or signs, and one character further."""


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
    # The same draws as from a list of the other rows, which would take time for each of them.
    chosen = random.Random(FEWSHOT_SEED + row).sample(range(len(kept) - 1), task.num_fewshot)
    return [kept[other + (other >= row)].example for other in chosen]


def share_rows(task: Task, kept: Sequence[KeptExample], num_shares: int) -> list[list[int]]:
    """The rows in shares of about as much text each, those that begin alike in the same one.

    Questions about one story cost little more than one of them, if the same rank asks them.
    """
    if num_shares == 1:
        return [list(range(len(kept)))]
    texts = [_stem(task, kept, row) + item.example.answer.context for row, item in enumerate(kept)]
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    total, before = sum(map(len, texts)) + len(texts), 0
    for row in sorted(range(len(kept)), key=lambda row: texts[row]):
        shares[before * num_shares // total].append(row)
        before += len(texts[row]) + 1
    return shares


def build_prompts(
    task: Task, kept: Sequence[KeptExample], row: int, tokenizer: Tokenizer, max_tokens: int
) -> list[Prompt]:
    """One prompt for every option of the example in `row`, at most `max_tokens` long.

    Raises DataError when the tokens of a language_modeling prompt do not begin with those of the
    prompt without its continuation.
    """
    stem, example = _stem(task, kept, row), kept[row].example
    texts = [stem + _filled(option, task.delimiter) for option in example.options]
    if task.task_type == "language_modeling":
        question = (stem + example.options[0].context + task.delimiter).strip()
        whole, begun = _encode_all(tokenizer, [*texts, question], stem)
        return [crop(whole, _continuation_start(task, kept[row], begun, whole), max_tokens)]
    tokens = _encode_all(tokenizer, texts, stem)
    if task.task_type == "schema":
        shared = _common_suffix(tokens)
        starts = [len(ids) - shared for ids in tokens]
    else:
        starts = [common_prefix(tokens)] * len(tokens)
    return [crop(ids, start, max_tokens) for ids, start in zip(tokens, starts, strict=True)]


def crop(tokens: NDArray[np.int32], start: int, max_tokens: int) -> Prompt:
    """Keep the last tokens of a prompt that is too long; its span ends where it ends."""
    excess = max(0, len(tokens) - max_tokens)
    return Prompt(tokens[excess:], start - excess, len(tokens) - excess, excess > 0)


def _filled(option: Option, delimiter: str) -> str:
    return option.context + delimiter + option.continuation


def _stem(task: Task, kept: Sequence[KeptExample], row: int) -> str:
    """The few shots, each followed by a blank line."""
    return "".join(
        _filled(shot.answer, task.delimiter) + "\n\n" for shot in few_shots(task, kept, row)
    )


def _encode_all(tokenizer: Tokenizer, texts: Sequence[str], stem: str) -> list[NDArray[np.int32]]:
    """BOS and the ids of each text; of a long stem that all of them have only once.

    That is exact. When the ids of the first text end with those that its part after the stem has by
    itself, a piece of the split pattern ends with the stem; and a pattern that has come to the end
    of the stem in one text does so in every text that goes on with the same characters, as far as
    it looks ahead.
    """
    first = _encode(tokenizer, texts[0])
    begin = texts[0][: len(stem) + AHEAD]
    is_shared = len(begin) == len(stem) + AHEAD and all(text.startswith(begin) for text in texts)
    if not stem or not is_shared or len(texts) == 1:
        return [first, *(_encode(tokenizer, text) for text in texts[1:])]
    ends = [np.array(tokenizer.encode(text[len(stem) :]), dtype=np.int32) for text in texts]
    split = len(first) - len(ends[0])
    if split < 1 or not np.array_equal(first[split:], ends[0]):
        return [first, *(_encode(tokenizer, text) for text in texts[1:])]
    return [first, *(np.concatenate([first[:split], end]) for end in ends[1:])]


def _encode(tokenizer: Tokenizer, text: str) -> NDArray[np.int32]:
    return np.array([tokenizer.bos_id, *tokenizer.encode(text)], dtype=np.int32)


def _continuation_start(
    task: Task, kept: KeptExample, question: NDArray[np.int32], whole: NDArray[np.int32]
) -> int:
    if not np.array_equal(whole[: len(question)], question):
        raise DataError(
            f"{task.data_path}, example {kept.source_row}: with this tokenizer the continuation "
            f"changes the tokens before it, so it cannot be scored alone; let the delimiter of "
            f"task {task.label} ({task.delimiter!r}) end with a space, or remove the example"
        )
    return len(question)


def common_prefix(sequences: Sequence[NDArray[np.int32]]) -> int:
    """How many first tokens all of them share."""
    shortest = min(len(ids) for ids in sequences)
    same = np.all([ids[:shortest] == sequences[0][:shortest] for ids in sequences[1:]], axis=0)
    return shortest if np.all(same) else int(np.argmin(same))


def _common_suffix(sequences: Sequence[NDArray[np.int32]]) -> int:
    return common_prefix([ids[::-1] for ids in sequences])
