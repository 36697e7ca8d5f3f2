"""The conversations of one SFT epoch, put together as the recipe says."""

import random
from collections.abc import Sequence

from nanochat_core.config.base import Config
from nanochat_core.conversation.identity import ModelFacts, identity_conversations
from nanochat_core.conversation.questions import QuestionAnswer, question_conversations
from nanochat_core.conversation.recipes import ConversationKind, Mixture, MixturePart
from nanochat_core.conversation.sums import sum_conversations
from nanochat_core.conversation.types import Conversation
from nanochat_core.errors import ConfigError, DataError


class BuiltMixture(Config):
    """Shuffled conversations and how many there are of each kind asked for (0: none to draw)."""

    conversations: tuple[Conversation, ...]
    counts: dict[ConversationKind, int]


def build_mixture(
    mixture: Mixture, facts: ModelFacts, questions: Sequence[QuestionAnswer]
) -> BuiltMixture:
    """Draw and shuffle all parts; a pure function of its arguments.

    With an empty pool of questions that part is left out and its count is 0; `DataError` when
    nothing is left then.
    """
    if facts.name != mixture.name:
        raise ConfigError(
            f"the model's facts say name={facts.name!r} but the mixture says {mixture.name!r}; "
            "make the facts with the mixture's name"
        )
    conversations: list[Conversation] = []
    counts: dict[ConversationKind, int] = {}
    for index, part in enumerate(mixture.parts):
        # A generator of its own: changing one part leaves the draws of the others alone.
        rng = random.Random(f"{mixture.seed}/{index}/{part.kind}")
        drawn = _draw(part, facts, questions, rng)
        counts[part.kind] = counts.get(part.kind, 0) + len(drawn)
        conversations += drawn
    if not conversations:
        raise DataError(
            f"the mixture {[part.kind for part in mixture.parts]} gives no conversation: the pool "
            "of questions is empty; add a part of identity or sums"
        )
    random.Random(mixture.seed).shuffle(conversations)
    return BuiltMixture(conversations=tuple(conversations), counts=counts)


def _draw(
    part: MixturePart, facts: ModelFacts, questions: Sequence[QuestionAnswer], rng: random.Random
) -> list[Conversation]:
    if part.kind == "identity":
        return identity_conversations(facts, part.conversations, rng)
    if part.kind == "sums":
        return sum_conversations(part.conversations, rng)
    return question_conversations(questions, part.conversations, rng)
