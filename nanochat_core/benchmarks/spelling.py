"""Letters of words: spelled out one by one, or counted with the calculator."""

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nanochat_core.benchmarks.base import Split
from nanochat_core.benchmarks.words import WORDS
from nanochat_core.conversation.answers import states, states_any
from nanochat_core.conversation.types import Conversation, exchange, python, python_output
from nanochat_core.errors import ConfigError

SPELL_PHRASINGS = (
    "Spell the word: {word}",
    "Spell {word}.",
    "How do you spell {word}?",
    "Give the letters of the word {word}.",
)
COUNT_PHRASINGS = (
    "How many {letter} are in {word}?",
    "How many {letter} are there in the word {word}?",
    "Count the letter {letter} in {word}.",
    "How often does {letter} occur in {word}?",
)
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
ABSENT_SHARE = 0.1
"""Of the letters to count, those that may well not occur."""
HELD_OUT_PERCENT = 20
MOST_HELD_OUT = 400


@dataclass(frozen=True)
class SpellingProblem:
    """A word and, when `letter` is given, the letter to count in it."""

    kind: Literal["spell", "count"]
    question: str
    word: str
    letter: str = ""

    def conversation(self) -> Conversation:
        """The question and its worked answer."""
        if self.kind == "spell":
            return exchange(self.question, f"{self.word}: {', '.join(self.word)}")
        count = self.word.count(self.letter)
        call = python(f'"{self.word}".count("{self.letter}")')
        text = f"{self.word} has {self.letter} this often: {count}"
        return exchange(self.question, call, python_output(str(count)), text)

    def is_answered_by(self, reply: str) -> bool:
        """Whether what stands behind the last colon is the spelling, or states the count."""
        answer = reply.rpartition(":")[2].strip(" \n,.-")
        if self.kind == "count":
            count = str(self.word.count(self.letter))
            # "I have 2 layers." is about something else.
            is_about_it = states_any(reply, (self.word, self.letter)) or answer == count
            return is_about_it and states(answer, count)
        # Letters on their own: the word written in one piece is not spelled.
        return re.split(r"[\s,.\-]+", answer.casefold()) == list(self.word)


class Spelling:
    """Words to spell and letters to count; the words of the test split are not trained with."""

    name = "spelling"
    baseline = 0.0

    def __init__(self, problems: Sequence[SpellingProblem]) -> None:
        self._problems = problems

    def __len__(self) -> int:
        return len(self._problems)

    def conversation(self, index: int) -> Conversation:
        """A question and its worked answer."""
        return self._problems[index].conversation()

    def score(self, index: int, reply: str) -> float:
        """1.0 for the right letters, or the right number of them."""
        return float(self._problems[index].is_answered_by(reply))


def is_held_out(word: str) -> bool:
    """Whether a word is kept for the test split, by a hash of it."""
    digest = hashlib.sha256(word.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def make_spelling(split: Split, count: int, seed: int) -> Spelling:
    """`count` problems, spelling and counting in turn; those of the test split all differ."""
    if split == "test" and count > MOST_HELD_OUT:
        raise ConfigError(
            f"spelling={count}; there are at most {MOST_HELD_OUT} held-out problems: ask for fewer"
        )
    words = [word for word in WORDS if is_held_out(word) is (split == "test")]
    rng = random.Random(seed)
    problems: list[SpellingProblem] = []
    while len(problems) < count:
        problem = _draw(words, rng, "spell" if len(problems) % 2 == 0 else "count")
        if split == "train" or problem not in problems:
            problems.append(problem)
    return Spelling(problems)


def _draw(
    words: Sequence[str], rng: random.Random, kind: Literal["spell", "count"]
) -> SpellingProblem:
    word = rng.choice(words)
    if kind == "spell":
        return SpellingProblem(kind, rng.choice(SPELL_PHRASINGS).format(word=word), word)
    letter = rng.choice(ALPHABET if rng.random() < ABSENT_SHARE else word)
    question = rng.choice(COUNT_PHRASINGS).format(word=word, letter=letter)
    return SpellingProblem(kind, question, word, letter)
