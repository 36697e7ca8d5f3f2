"""What every benchmark is: rows that become conversations, and a judgement of replies."""

from typing import Literal, Protocol, get_args, runtime_checkable

from nanochat_core.conversation.types import Conversation

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@runtime_checkable
class Benchmark(Protocol):
    """Numbered problems; each is a conversation that ends with the reference answer."""

    @property
    def name(self) -> str:
        """As it stands in scores: `gsm8k`, `arc-easy`, `sums`."""

    @property
    def baseline(self) -> float:
        """Accuracy of guessing, from 0 to 1."""

    def __len__(self) -> int:
        """How many problems there are."""

    def conversation(self, index: int) -> Conversation:
        """A problem with its reference answer as the last message."""


@runtime_checkable
class CategoricalBenchmark(Benchmark, Protocol):
    """Problems whose answer is one letter; judged by the logits of the letters."""

    def letters(self, index: int) -> tuple[str, ...]:
        """The letters that a problem offers, in its own order."""

    def answer(self, index: int) -> str:
        """The right letter."""


@runtime_checkable
class GenerativeBenchmark(Benchmark, Protocol):
    """Problems that are answered in free text; the score also is the reward of RL."""

    def score(self, index: int, reply: str) -> float:
        """1.0 for a right reply, 0.0 for a wrong one; `reply` is its visible text."""


def prompt(conversation: Conversation) -> Conversation:
    """A problem without its reference answer, as the model gets it."""
    return Conversation(messages=conversation.messages[:-1])
