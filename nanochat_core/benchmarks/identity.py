"""Held-out questions to the model about itself: its name, its depth, its parameter count."""

from collections.abc import Sequence

from nanochat_core.benchmarks.base import Split
from nanochat_core.conversation.identity import (
    HeldOutQuestion,
    ModelFacts,
    held_out_questions,
    identity_answers,
)
from nanochat_core.conversation.phrasings import MainFact
from nanochat_core.conversation.types import Conversation, exchange
from nanochat_core.errors import ConfigError


class Identity:
    """Questions of families that SFT never trains with, answered by the model's own facts."""

    name = "identity"
    baseline = 0.0

    def __init__(self, questions: Sequence[HeldOutQuestion], facts: ModelFacts) -> None:
        self._questions = questions
        self._answers = identity_answers(facts)

    def __len__(self) -> int:
        return len(self._questions)

    def kind(self, index: int) -> MainFact:
        """What is asked for: name, depth or parameters."""
        return self._questions[index].kind

    def conversation(self, index: int) -> Conversation:
        """A question and the answer that SFT teaches."""
        question = self._questions[index]
        return exchange(question.question, self._answers[question.kind])

    def score(self, index: int, reply: str) -> float:
        """1.0 when the reply states the name, or the number."""
        return float(self._questions[index].is_answered_by(reply))


def make_identity(split: Split, count: int, facts: ModelFacts | None) -> Identity:
    """The first `count` held-out questions (0: all). Raises ConfigError where there are none."""
    if split == "train":
        raise ConfigError("identity has only a test split; SFT trains with other questions")
    if facts is None:
        raise ConfigError("identity asks a model about itself: give the facts of the model")
    questions = held_out_questions(facts)
    if count > len(questions):
        raise ConfigError(
            f"identity_questions={count}; there are {len(questions)} held-out questions"
        )
    return Identity(questions[: count or len(questions)], facts)
