"""Conversations about a model from templates, by a sheet of facts that may know only some of them.

`identity.py` teaches a model that is there, all of whose numbers are known. A sheet is what people
write: a name, perhaps numbers, own answers to the usual questions, and facts of their own.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from nanochat_core.config.base import Config
from nanochat_core.conversation.answers import normalise, states_any
from nanochat_core.conversation.identity import (
    DECORATION_SHARE,
    FRAME_SHARE,
    LOWER_CASE_SHARE,
    ModelFacts,
    accepted_values,
    framed,
    held_out_questions,
    identity_answers,
    identity_conversations,
)
from nanochat_core.conversation.phrasings import (
    CLOSINGS,
    MAIN_FACTS,
    OPENINGS,
    OTHER_FACTS,
    TRAINED_FRAMES,
    Fact,
)
from nanochat_core.conversation.types import Conversation, assistant, exchange
from nanochat_core.errors import ConfigError, DataError

NUMBERS: dict[str, Fact] = {
    "depth": "depth",
    "num_parameters": "parameters",
    "n_embd": "width",
    "n_head": "heads",
    "vocab_size": "vocabulary",
    "sequence_len": "context",
}
"""Numbers of a model and the facts that are about them."""
MAX_SHEET_BYTES = 2**20
DRAWS_PER_CONVERSATION = 1_000
"""Far more than a sheet needs that knows nothing but a name (about four)."""


class OwnFact(Config):
    """Something that only this model has to say about itself."""

    answer: str = Field(min_length=1)
    topic: str = Field("", description="fills 'Tell me {topic}.', such as: where you live")
    questions: tuple[str, ...] = Field((), description="whole questions with this answer")

    @model_validator(mode="after")
    def _check_asked(self) -> "OwnFact":
        if not self.topic.strip() and not any(question.strip() for question in self.questions):
            raise ConfigError(
                f"nothing asks for the fact {self.answer!r}; give it a topic, such as "
                '"where you live", or questions'
            )
        return self


class FactSheet(Config):
    """What a model can say about itself; a fact that is not known is never asked for."""

    name: str = Field("nanochat", pattern=r"\S")
    data: str = Field("", description="completes: I was trained on ...; '': not known")
    depth: int | None = Field(None, ge=1)
    num_parameters: int | None = Field(None, ge=1)
    n_embd: int | None = Field(None, ge=1)
    n_head: int | None = Field(None, ge=1)
    vocab_size: int | None = Field(None, ge=1)
    sequence_len: int | None = Field(None, ge=1)
    answers: dict[Fact, str] = Field(
        default_factory=dict, description="own words instead of the usual answer; '': never asked"
    )
    more: tuple[OwnFact, ...] = ()
    background: str = Field("", description="what an endpoint that writes may know besides")

    @model_validator(mode="after")
    def _check_answers(self) -> "FactSheet":
        unknown = [number for number, fact in NUMBERS.items() if getattr(self, number) is None]
        values = accepted_values(self.model_facts())
        if not self.answers.get("name", self.name).strip():
            raise ConfigError("the answer about the name is empty; a model that is asked says it")
        for fact in MAIN_FACTS:
            own = self.answers.get(fact, "")
            is_known = not any(NUMBERS[number] == fact for number in unknown)
            if own and is_known and not states_any(own, values[fact]):
                raise ConfigError(
                    f"the own answer about {fact}, {own!r}, does not state it; expected "
                    f"{' or '.join(map(repr, values[fact]))} in it"
                )
        asked = {normalise(held.question) for held in held_out_questions(self.model_facts())}
        leaked = [q for own in self.more for q in own.questions if normalise(q) in asked]
        if leaked:
            raise ConfigError(
                f"the question {leaked[0]!r} is one that models are examined with, never "
                "trained; ask in other words"
            )
        return self

    def model_facts(self) -> ModelFacts:
        """The facts as `identity.py` wants them: 1 for every number that is not known."""
        numbers = {number: getattr(self, number) or 1 for number in NUMBERS}
        return ModelFacts(name=self.name, data=self.data or "text", **numbers)

    def known_answers(self) -> dict[Fact, str]:
        """The answer to every question that may be asked."""
        answers = identity_answers(self.model_facts())
        unknown = [fact for number, fact in NUMBERS.items() if getattr(self, number) is None]
        unknown += [] if self.data else ["data"]
        for fact in unknown:
            del answers[fact]
        answers |= self.answers
        return {fact: answer for fact, answer in answers.items() if answer.strip()}


def read_sheet(path: Path, **known: Any) -> FactSheet:
    """The facts of a JSON file; `known` comes from elsewhere and wins. Raises DataError."""
    try:
        if path.stat().st_size > MAX_SHEET_BYTES:
            raise DataError(f"{path} is larger than 1 MB; a sheet of facts is a short JSON file")
        given = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"the facts in {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON in UTF-8: {error}") from error
    if not isinstance(given, dict):
        raise DataError(f"{path} holds a {type(given).__name__}; expected an object of facts")
    return make_sheet({**given, **known}, str(path))


def make_sheet(given: Mapping[str, Any], source: str) -> FactSheet:
    """A sheet of these values; ConfigError names the field that is wrong."""
    try:
        return FactSheet.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the facts"
        raise ConfigError(
            f"{source}: {place}: {first['msg']}; there are {', '.join(FactSheet.model_fields)}, "
            f"and answers about {', '.join((*MAIN_FACTS, *OTHER_FACTS))}"
        ) from error


def made_conversations(sheet: FactSheet, count: int, seed: int) -> list[Conversation]:
    """`count` conversations of what the sheet knows; fewer of the same seed are their beginning."""
    rng = random.Random(f"made identity/{seed}")
    facts, answers = sheet.model_facts(), sheet.known_answers()
    words = {usual: answers.get(fact, "") for fact, usual in identity_answers(facts).items()}
    own_share = len(sheet.more) / (len(sheet.more) + len(answers))
    made: list[Conversation] = []
    for _ in range(count * DRAWS_PER_CONVERSATION):
        if len(made) == count:
            break
        if rng.random() < own_share:
            made.append(_own_conversation(rng.choice(sheet.more), rng))
            continue
        (drawn,) = identity_conversations(facts, 1, rng)
        if all(words[answer.text] for answer in drawn.messages[1::2]):
            made.append(_in_own_words(drawn, words))
    assert len(made) == count, f"{len(made)} of {count} conversations in so many draws"
    return made


def as_line(conversation: Conversation) -> str:
    """A conversation of texts as one line of JSONL, as chat endpoints are given it."""
    messages = [{"role": m.role, "content": m.text} for m in conversation.messages]
    return json.dumps({"messages": messages}, ensure_ascii=False)


def _in_own_words(drawn: Conversation, words: Mapping[str, str]) -> Conversation:
    told = [
        assistant(words[message.text]) if message.role == "assistant" else message
        for message in drawn.messages
    ]
    return Conversation(messages=tuple(told))


def _own_conversation(fact: OwnFact, rng: random.Random) -> Conversation:
    whole = [question for question in fact.questions if question.strip()]
    if not whole or (fact.topic.strip() and rng.random() < FRAME_SHARE):
        family = rng.choice(sorted(TRAINED_FRAMES))
        question = framed(rng.choice(TRAINED_FRAMES[family]), fact.topic.strip())
    else:
        question = rng.choice(whole)
    if rng.random() < DECORATION_SHARE:
        question += rng.choice(CLOSINGS)
    if rng.random() < DECORATION_SHARE:
        question = rng.choice(OPENINGS) + question
    return exchange(question.lower() if rng.random() < LOWER_CASE_SHARE else question, fact.answer)
