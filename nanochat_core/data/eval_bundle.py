"""In-context tasks out of held-out documents, in the layout of the CORE bundle (RECIPE section 5).

Three tasks, one of each type, which ask how a text goes on:

* heldout_rest, multiple choice: which of four endings belongs to the start of a sentence;
* heldout_start, schema: which of two starts belongs to an ending;
* heldout_word, language modeling: the one word that follows, where the two words before it
  settle it in most other places of the held-out text.

The score is a `demo_score`: it says whether a small model learnt its text, and nothing about CORE.
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from nanochat_core.data.near_duplicates import stable_hash
from nanochat_core.data.shards import ShardIndex, read_documents
from nanochat_core.errors import DataError

ITEMS_PER_TASK = 200
MAX_DOCUMENTS = 2_000
MIN_WORDS, MAX_WORDS = 12, 40
MIN_WORD_COUNT, MIN_WORD_SHARE = 3, 0.6
"""A word is settled by the two before it when they meet so often, and so often lead to it."""

CATEGORY = "heldout"
META_COLUMNS = (
    "Eval Task",
    "Task Category",
    "Task Type",
    "#shots",
    "#datapoints",
    "Random baseline",
    "Centered Metric?",
    "Description",
)
Item = dict[str, Any]


@dataclass(frozen=True)
class _Task:
    label: str
    kind: str
    baseline_percent: int
    description: str
    items: list[Item]

    @property
    def dataset_uri(self) -> str:
        return f"{CATEGORY}/{self.label}.jsonl"


@dataclass(frozen=True)
class _Sentence:
    """A sentence cut between two words."""

    start: str
    rest: str

    @property
    def key(self) -> str:
        return f"{self.start} {self.rest}"


class _Draw:
    """Choices that follow from a seed and a text alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def number(self, text: str, below: int) -> int:
        """An integer in [0, below)."""
        return stable_hash(f"{self.seed} {text}") % below

    def mixed(self, items: Iterable[Any], key: Callable[[Any], str]) -> list[Any]:
        """Items in an order given by their hashes."""
        return sorted(items, key=lambda item: (stable_hash(f"{self.seed} {key(item)}"), key(item)))


def _sentences(documents: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for document in documents:
        for paragraph in re.split(r"\n\s*\n", document):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph):
                found[" ".join(sentence.split())] = None
    return list(found)


def _cut_sentences(sentences: Sequence[str], draw: _Draw) -> list[_Sentence]:
    """Sentences of a fit length, each cut somewhere in its middle third."""
    cut = []
    for sentence in sentences:
        words = sentence.split(" ")
        if MIN_WORDS <= len(words) <= MAX_WORDS:
            third = len(words) // 3
            at = third + draw.number(f"cut {sentence}", third + 1)
            cut.append(_Sentence(" ".join(words[:at]), " ".join(words[at:])))
    return draw.mixed(cut, key=lambda item: item.key)


def _others(pool: Sequence[_Sentence], index: int, count: int) -> list[_Sentence]:
    """The next `count` sentences of the pool with an ending and a start of their own."""
    own, chosen = pool[index], []
    ends, starts = {own.rest}, {own.start}
    for step in range(1, len(pool)):
        other = pool[(index + step) % len(pool)]
        if other.rest not in ends and other.start not in starts:
            chosen.append(other)
            ends.add(other.rest)
            starts.add(other.start)
        if len(chosen) == count:
            break
    return chosen


def _rest_items(pool: Sequence[_Sentence], draw: _Draw) -> list[Item]:
    items = []
    for index, own in enumerate(pool):
        others = _others(pool, index, 3)
        if len(others) == 3:
            gold = draw.number(f"gold {own.key}", 4)
            choices = [other.rest for other in others]
            choices.insert(gold, own.rest)
            items.append({"query": own.start, "choices": choices, "gold": gold})
    return items[:ITEMS_PER_TASK]


def _start_items(pool: Sequence[_Sentence], draw: _Draw) -> list[Item]:
    items = []
    for index, own in enumerate(pool):
        for other in _others(pool, index, 1):
            gold = draw.number(f"gold {own.key}", 2)
            options = [other.start]
            options.insert(gold, own.start)
            items.append({"context_options": options, "continuation": own.rest, "gold": gold})
    return items[:ITEMS_PER_TASK]


def _settled_words(sentences: Sequence[str]) -> dict[tuple[str, str], str]:
    """For pairs of words, the word that nearly always follows."""
    following: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        words = sentence.split(" ")
        for first, second, third in zip(words, words[1:], words[2:], strict=False):
            following[first, second][third] += 1
    settled = {}
    for pair, counts in following.items():
        word, count = counts.most_common(1)[0]
        if count >= MIN_WORD_COUNT and count >= MIN_WORD_SHARE * counts.total():
            settled[pair] = word
    return settled


def _word_items(sentences: Sequence[str], draw: _Draw) -> list[Item]:
    """One item a sentence, at the last place where a plain word is settled."""
    settled = _settled_words(sentences)
    items: dict[str, Item] = {}
    for sentence in sentences:
        words = sentence.split(" ")[:MAX_WORDS]
        for at in range(len(words) - 1, 3, -1):
            if words[at].isalpha() and settled.get((words[at - 2], words[at - 1])) == words[at]:
                context = " ".join(words[:at])
                items[context] = {"context": context, "continuation": words[at]}
                break
    return draw.mixed(items.values(), key=lambda item: item["context"])[:ITEMS_PER_TASK]


def _tasks(documents: Sequence[str], draw: _Draw) -> list[_Task]:
    sentences = _sentences(documents)
    cut = _cut_sentences(sentences, draw)
    rest_pool, start_pool = cut[::2], cut[1::2]
    return [
        _Task(
            "heldout_rest",
            "multiple_choice",
            25,
            "Which of four endings belongs to the start of a sentence.",
            _rest_items(rest_pool, draw),
        ),
        _Task(
            "heldout_start",
            "schema",
            50,
            "Which of two starts belongs to the ending of a sentence.",
            _start_items(start_pool, draw),
        ),
        _Task(
            "heldout_word",
            "language_modeling",
            0,
            "The next word, where the two words before it nearly always lead to it.",
            _word_items(sentences, draw),
        ),
    ]


def _write_bundle(tasks: Sequence[_Task], output: Path) -> None:
    folder = output / "eval_data"
    (folder / CATEGORY).mkdir(parents=True, exist_ok=True)
    for task in tasks:
        lines = [json.dumps(item) + "\n" for item in task.items]
        (folder / task.dataset_uri).write_text("".join(lines), encoding="utf-8")
    entries = [
        {
            "label": task.label,
            "dataset_uri": task.dataset_uri,
            "num_fewshot": [0],
            "icl_task_type": task.kind,
        }
        for task in tasks
    ]
    text = yaml.safe_dump({"icl_tasks": entries}, sort_keys=False)
    (output / "core.yaml").write_text(text, encoding="utf-8")
    with (output / "eval_meta_data.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(META_COLUMNS)
        for task in tasks:
            kind, baseline = task.kind.replace("_", " "), task.baseline_percent
            count, about = len(task.items), task.description
            writer.writerow([task.label, CATEGORY, kind, 0, count, baseline, "", about])


def build_heldout_bundle(shards: Path, output: Path, *, seed: int) -> Path:
    """Write a bundle from the validation shard of the folder `shards`; returns `output`.

    Up to 200 items a task; a task for which the text is too small is left out. Raises DataError
    when no task is left.
    """
    index = ShardIndex.load(shards)
    documents = list(islice(read_documents(shards / index.validation), MAX_DOCUMENTS))
    tasks = [task for task in _tasks(documents, _Draw(seed)) if task.items]
    if not tasks:
        raise DataError(
            f"the {len(documents)} validation documents in {shards} hold no sentences of "
            f"{MIN_WORDS} to {MAX_WORDS} words to make evaluation items of; add text"
        )
    _write_bundle(tasks, output)
    return output
