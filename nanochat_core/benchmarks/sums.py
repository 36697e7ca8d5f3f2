"""Sums of small numbers; those of the test split are of pairs that are never trained with."""

import random
from collections.abc import Sequence

from nanochat_core.benchmarks.base import Split
from nanochat_core.conversation.answers import states
from nanochat_core.conversation.sums import held_out_sums, sum_conversation, sum_conversations
from nanochat_core.conversation.types import Conversation


class Sums:
    """One- and two-digit additions."""

    name = "sums"
    baseline = 0.0

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        self._conversations = conversations

    def __len__(self) -> int:
        return len(self._conversations)

    def conversation(self, index: int) -> Conversation:
        """A sum, worked out with the calculator."""
        return self._conversations[index]

    def score(self, index: int, reply: str) -> float:
        """1.0 when the reply states the sum.

        A sum may be repeated before it is answered, and 7 is in "0 + 7 = 9": what stands before
        the last equals sign does not count.
        """
        return float(states(reply.rpartition("=")[2], _result(self._conversations[index])))


def make_sums(split: Split, count: int, seed: int) -> Sums:
    """`count` sums: of trained pairs for train, of different held-out pairs for test."""
    if split == "train":
        return Sums(sum_conversations(count, random.Random(seed)))
    conversations = []
    for held_out in held_out_sums(count, seed):
        a, b = map(int, held_out.expression.split("+"))
        conversations.append(sum_conversation(held_out.question, a, b))
    return Sums(conversations)


def _result(conversation: Conversation) -> str:
    (result,) = (p.text for p in conversation.messages[-1].parts if p.kind == "python_output")
    return result
