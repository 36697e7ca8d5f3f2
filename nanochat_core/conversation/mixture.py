"""The conversations of one SFT epoch, put together as the recipe says."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from nanochat_core.conversation.identity import ModelFacts, identity_conversations
from nanochat_core.conversation.pools import Drawn, Pool, permutation
from nanochat_core.conversation.questions import QuestionAnswer, question_conversations
from nanochat_core.conversation.recipes import Mixture, MixturePart
from nanochat_core.conversation.sums import sum_conversations
from nanochat_core.conversation.types import Conversation
from nanochat_core.errors import ConfigError, DataError

Place = tuple[int, int]
"""A conversation: the number of its pool, and its row in there."""


@dataclass(frozen=True)
class BuiltMixture:
    """Shuffled places of conversations, and how many there are of each part (0: none to draw).

    The same place comes up as often as its part has epochs; pools of files are read only when
    somebody asks for what they hold.
    """

    pools: tuple[Pool, ...]
    order: tuple[Place, ...]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.order)

    def read(self, places: Iterable[Place]) -> Iterator[tuple[Place, Conversation]]:
        """The conversations at these places, once each, in the order of places."""
        rows: dict[int, set[int]] = {}
        for number, row in places:
            rows.setdefault(number, set()).add(row)
        for number in sorted(rows):
            for row, conversation in self.pools[number].pick(rows[number]):
                yield (number, row), conversation

    @cached_property
    def conversations(self) -> tuple[Conversation, ...]:
        """All of them in training order, held in memory; large mixtures are read in parts."""
        found = dict(self.read(self.order))
        return tuple(found[place] for place in self.order)


def no_files(part: MixturePart) -> Pool:
    """What a mixture without files answers when one is asked for."""
    raise ConfigError(
        f"the mixture has a part {part.label}, which is read from a file, and no folder of "
        "benchmarks is given; give one, or leave the part out"
    )


def build_mixture(
    mixture: Mixture,
    facts: ModelFacts,
    questions: Sequence[QuestionAnswer],
    open_pool: Callable[[MixturePart], Pool] = no_files,
) -> BuiltMixture:
    """Draw and shuffle all parts; a pure function of its arguments.

    `open_pool` gives the conversations of a part that is read. With an empty pool of questions
    that part is left out and its count is 0; `DataError` when nothing is left then.
    """
    if facts.name != mixture.name:
        raise ConfigError(
            f"the model's facts say name={facts.name!r} but the mixture says {mixture.name!r}; "
            "make the facts with the mixture's name"
        )
    pools: list[Pool] = []
    order: list[Place] = []
    counts: dict[str, int] = {}
    for index, part in enumerate(mixture.parts):
        # A generator of its own: changing one part leaves the draws of the others alone.
        rng = random.Random(f"{mixture.seed}/{index}/{part.kind}")
        pools.append(_draw(part, facts, questions, rng) if part.is_made else open_pool(part))
        rows = _rows(part, len(pools[-1]))
        counts[part.label] = counts.get(part.label, 0) + len(rows)
        order += [(index, row) for row in rows]
    if not order:
        raise DataError(
            f"the mixture {counts} gives no conversation: the pool of questions is empty, or parts "
            "have too few epochs for a single row; add a part of identity or sums, or raise epochs"
        )
    random.Random(mixture.seed).shuffle(order)
    return BuiltMixture(tuple(pools), tuple(order), counts)


def _draw(
    part: MixturePart, facts: ModelFacts, questions: Sequence[QuestionAnswer], rng: random.Random
) -> Drawn:
    if part.kind == "identity":
        return Drawn(identity_conversations(facts, part.conversations, rng))
    if part.kind == "sums":
        return Drawn(sum_conversations(part.conversations, rng))
    return Drawn(question_conversations(questions, part.conversations, rng))


def _rows(part: MixturePart, num_rows: int) -> list[int]:
    """The rows that a part lists: as drawn, or those of a file as often as there are epochs."""
    if part.is_made:
        return list(range(num_rows))
    rows = permutation(num_rows)[: part.conversations or num_rows]
    whole, rest = divmod(part.epochs, 1)
    return rows * int(whole) + rows[: round(rest * len(rows))]
