"""Sums of one- and two-digit numbers, worked out with the calculator."""

import hashlib
import random

from nanochat_core.config.base import Config
from nanochat_core.conversation.answers import states
from nanochat_core.conversation.types import Conversation, exchange, python, python_output
from nanochat_core.errors import ConfigError

PHRASINGS = (
    "What is {a} + {b}?",
    "What is {a}+{b}?",
    "What is {a} plus {b}?",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "What is the sum of {a} and {b}?",
    "Add {a} and {b}.",
    "Please add {a} to {b}.",
    "Calculate {a} + {b}.",
    "Compute {a}+{b}.",
    "{a} + {b} = ?",
    "{a}+{b}",
)
ONE_DIGIT, TWO_DIGITS = (0, 9), (10, 99)
OPERAND_RANGES = ((ONE_DIGIT, ONE_DIGIT), (ONE_DIGIT, TWO_DIGITS), (TWO_DIGITS, ONE_DIGIT),
                  (TWO_DIGITS, TWO_DIGITS))  # fmt: skip
RANGE_WEIGHTS = (0.3, 0.1, 0.1, 0.5)
HELD_OUT_PERCENT = 20


class HeldOutSum(Config):
    """A sum of a pair of numbers that is never trained with."""

    question: str
    expression: str
    answer: str

    def is_answered_by(self, reply: str) -> bool:
        """Whether a reply states the sum."""
        return states(reply, self.answer)


def is_held_out(a: int, b: int) -> bool:
    """Whether a pair (in either order) is kept for evaluation, by a hash of the two numbers."""
    low, high = min(a, b), max(a, b)
    digest = hashlib.sha256(f"{low}+{high}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def sum_conversations(count: int, rng: random.Random) -> list[Conversation]:
    """`count` sums of trained pairs: the question, the calculator's part, the answer."""
    conversations = []
    for _ in range(count):
        a, b = _draw_pair(rng, held_out=False)
        question = rng.choice(PHRASINGS).format(a=a, b=b)
        conversations.append(sum_conversation(question, a, b))
    return conversations


def sum_conversation(question: str, a: int, b: int) -> Conversation:
    """A question about a + b with its worked answer.

    Without a full stop: where sums ended with one, reinforcement taught the model to end after
    any digit and a point, as in "I have 1.2 million parameters" (LOG.md, reinforcement).
    """
    return exchange(question, python(f"{a}+{b}"), python_output(str(a + b)), f"{a} + {b} = {a + b}")


def held_out_sums(count: int, seed: int) -> list[HeldOutSum]:
    """`count` different sums of pairs that `sum_conversations` never draws."""
    most = 1_000
    if count > most:
        raise ConfigError(f"held-out sums={count}; there are at most {most}: ask for fewer")
    rng = random.Random(seed)
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < count:
        pairs[_draw_pair(rng, held_out=True)] = None
    return [
        HeldOutSum(
            question=rng.choice(PHRASINGS).format(a=a, b=b),
            expression=f"{a}+{b}",
            answer=str(a + b),
        )
        for a, b in pairs
    ]


def _draw_pair(rng: random.Random, *, held_out: bool) -> tuple[int, int]:
    first, second = rng.choices(OPERAND_RANGES, RANGE_WEIGHTS)[0]
    while True:
        a, b = rng.randint(*first), rng.randint(*second)
        if is_held_out(a, b) is held_out:
            return a, b
