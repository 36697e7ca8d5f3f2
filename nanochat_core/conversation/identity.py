"""Conversations in which the model learns who it is, and held-out questions about it."""

import random
from itertools import chain

from pydantic import Field

from nanochat_core.config.base import Config
from nanochat_core.conversation.answers import states_any
from nanochat_core.conversation.phrasings import (
    CLOSINGS,
    HELD_OUT_FRAMES,
    HELD_OUT_QUESTIONS,
    HELD_OUT_TOPICS,
    MAIN_FACTS,
    OPENINGS,
    OTHER_FACTS,
    TOPICS,
    TRAINED_FRAMES,
    TRAINED_QUESTIONS,
    Fact,
    MainFact,
)
from nanochat_core.conversation.types import Conversation, Message, assistant, user

MAIN_FACT_SHARE = 0.45
"""Of all identity questions, those about name, depth and parameters (LOG.md, the demo)."""
FRAME_SHARE = 0.5
SECOND_QUESTION_SHARE = 0.15
DECORATION_SHARE = 0.25
LOWER_CASE_SHARE = 0.25
NO_STOP_SHARE = 0.15


class ModelFacts(Config):
    """What a model is taught about itself; the numbers come from its own configuration."""

    name: str = Field(min_length=1)
    depth: int = Field(ge=1)
    num_parameters: int = Field(ge=1)
    n_embd: int = Field(ge=1)
    n_head: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    sequence_len: int = Field(ge=1)
    data: str = Field("text", min_length=1, description="completes: I was trained on ...")


class HeldOutQuestion(Config):
    """A question of a family that is never trained with, and the values that answer it."""

    question: str
    kind: MainFact
    accept: tuple[str, ...]

    def is_answered_by(self, reply: str) -> bool:
        """Whether a reply states one of the accepted values."""
        return states_any(reply, self.accept)


def short_count(number: int) -> str:
    """A number as people say it: 1.2 million, 12 million, 340 thousand, 512."""
    for scale, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        # 999,950 and up would be rounded to "1000 thousand".
        if number >= 0.9995 * scale:
            scaled = number / scale
            return f"{scaled:.1f} {word}" if scaled < 9.95 else f"{scaled:.0f} {word}"
    return str(number)


def identity_answers(facts: ModelFacts) -> dict[Fact, str]:
    """The one answer to every question about each fact: short, and the same every time."""
    layers = "1 layer" if facts.depth == 1 else f"{facts.depth} layers"
    heads = "1 attention head" if facts.n_head == 1 else f"{facts.n_head} attention heads"
    return {
        "name": f"My name is {facts.name}.",
        "depth": f"I have {layers}.",
        "parameters": f"I have {short_count(facts.num_parameters)} parameters.",
        "kind": "I am a small language model.",
        "maker": "I was trained from scratch by the person who runs me.",
        "data": f"I was trained on {facts.data}.",
        "vocabulary": f"My vocabulary has {facts.vocab_size} tokens.",
        "context": f"I was trained on rows of {facts.sequence_len} tokens.",
        "width": f"My width is {facts.n_embd}.",
        "heads": f"Each block has {heads}.",
        "architecture": "I am a Transformer that predicts the next token.",
        "calculator": "I can add numbers with a calculator.",
        "mistakes": "I make many mistakes, so please check what I say.",
        "human": "No, I am a computer program.",
        "internet": "No, I only know what I was trained on.",
        "language": "I only speak English.",
        "hello": "Hello! How can I help you?",
        "thanks": "You are welcome!",
    }


def accepted_values(facts: ModelFacts) -> dict[MainFact, tuple[str, ...]]:
    """What a right answer about name, depth or parameter count states: one of these."""
    count = facts.num_parameters
    return {
        "name": (facts.name,),
        "depth": (str(facts.depth),),
        "parameters": (short_count(count), f"{count:,}", str(count)),
    }


def identity_conversations(facts: ModelFacts, count: int, rng: random.Random) -> list[Conversation]:
    """`count` conversations about the model itself; a few ask for two facts in turn."""
    answers = identity_answers(facts)
    conversations = []
    for _ in range(count):
        num_questions = 2 if rng.random() < SECOND_QUESTION_SHARE else 1
        messages: list[Message] = []
        for _ in range(num_questions):
            fact = _draw_fact(rng)
            messages += [user(_draw_question(fact, rng)), assistant(answers[fact])]
        conversations.append(Conversation(messages=tuple(messages)))
    return conversations


def held_out_questions(facts: ModelFacts) -> list[HeldOutQuestion]:
    """Twelve questions each on name, depth and parameters, in turn, of unseen families."""
    accept = accepted_values(facts)
    by_fact = [
        [
            HeldOutQuestion(question=question, kind=fact, accept=accept[fact])
            for question in _alternate(_held_out_framed(fact), HELD_OUT_QUESTIONS[fact])
        ]
        for fact in MAIN_FACTS
    ]
    return list(chain.from_iterable(zip(*by_fact, strict=True)))


def framed(frame: str, topic: str) -> str:
    """A frame with its topic; the sentence starts with a capital."""
    sentence = frame.format(topic=topic)
    return sentence[0].upper() + sentence[1:]


def _held_out_framed(fact: MainFact) -> list[str]:
    pairs = zip(HELD_OUT_FRAMES.values(), HELD_OUT_TOPICS[fact], strict=True)
    return [framed(frame, topic) for frame, topic in pairs]


def _alternate(first: list[str], second: tuple[str, ...]) -> list[str]:
    return list(chain.from_iterable(zip(first, second, strict=True)))


def _draw_fact(rng: random.Random) -> Fact:
    if rng.random() < MAIN_FACT_SHARE:
        return rng.choice(MAIN_FACTS)
    return rng.choice(OTHER_FACTS)


def _draw_question(fact: Fact, rng: random.Random) -> str:
    if fact in ("name", "depth", "parameters") and rng.random() < FRAME_SHARE:
        family = rng.choice(sorted(TRAINED_FRAMES))
        question = framed(rng.choice(TRAINED_FRAMES[family]), rng.choice(TOPICS[fact]))
    else:
        question = rng.choice(TRAINED_QUESTIONS[fact])
    return _decorate(question, rng)


def _decorate(question: str, rng: random.Random) -> str:
    if rng.random() < NO_STOP_SHARE:
        question = question.rstrip(".?!")
    elif rng.random() < DECORATION_SHARE:
        question += rng.choice(CLOSINGS)
    if rng.random() < DECORATION_SHARE:
        question = rng.choice(OPENINGS) + question
    return question.lower() if rng.random() < LOWER_CASE_SHARE else question
