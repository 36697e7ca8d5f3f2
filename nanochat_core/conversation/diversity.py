"""Many conversations about one model that are not all the same: what each is to be like, and
which ones say again what an earlier one said.

A plan is drawn by its number: every topic, persona and opening comes equally often, in an order
that the seed decides, and what number 17 is like does not depend on how many there will be.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from nanochat_core.conversation.answers import normalise
from nanochat_core.conversation.made_identity import FactSheet
from nanochat_core.conversation.types import Conversation

TOPICS = (
    "what the assistant is called",
    "what kind of program the assistant is",
    "who trained it, and on whose computer",
    "what text it has learned from",
    "what it is good at, and what it is bad at",
    "whether its answers can be trusted",
    "whether it is the famous assistant that the user takes it for",
    "whether it has feelings, a body or a home",
    "whether it can look things up on the internet or knows today's date",
    "whether it remembers earlier conversations",
    "how a language model of its kind works, in simple words",
    "what a Transformer is, with itself as the example",
    "why it is so small, and what being small means",
    "what it cannot do that the user hopes for",
    "how the user could train a model like it",
    "which languages it speaks",
    "how it would introduce itself to a group of people",
    "what happens to what the user types",
    "a greeting that turns into a question about the assistant",
    "a task of everyday life, with a question about the assistant in passing",
    "a misunderstanding about the assistant that is cleared up kindly",
    "a joke that the user wants it to make about itself",
    "how it differs from a search engine",
    "what it would say if it were asked to pretend to be a human",
)
PERSONAS = (
    "a pupil who does homework",
    "a retired teacher who types slowly and politely",
    "a programmer in a hurry",
    "a nurse on a night shift",
    "a sceptical journalist",
    "a child of nine",
    "somebody who has never used a chat program",
    "a student of machine learning who wants exact words",
    "a shopkeeper who writes without capitals or full stops",
    "a friendly person who likes small talk",
    "an annoyed customer who expected something else",
    "a non-native speaker with simple grammar",
    "a novelist who looks for a character",
    "a farmer with a practical question",
    "a teenager who uses slang and short messages",
    "a lawyer who asks for definitions",
    "a tourist on the way",
    "a grandfather who is told about computers by his family",
    "a researcher who compares models",
    "somebody who is bored and tests the assistant",
)
OPENINGS = (
    "a plain question",
    "a greeting and nothing else",
    "a request that begins with a verb",
    "a statement that turns out to be wrong",
    "a single word",
    "a long first message with some context",
    "a compliment",
    "a complaint",
    "a question that begins with 'So'",
    "a question that assumes the answer",
    "a quotation of what somebody else said",
    "a message with a typing mistake",
    "a question with two parts",
)
LENGTHS = (1, 1, 2, 2, 3, 4)
"""Exchanges of user and assistant; short ones more often, since small models see few tokens."""
SHINGLE_WORDS = 3
MAX_SHARED = 0.6
"""A conversation that shares more of its runs of three words with one earlier one is refused."""
MAX_SAME_OPENING = 2
"""So many conversations may begin with the same words of the user."""
MIN_SHINGLES = 4
"""What is shorter is judged by its opening alone: two greetings share most of their words."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Plan:
    """What one conversation is to be like."""

    number: int
    topic: str
    persona: str
    opening: str
    num_exchanges: int


def draw_plan(sheet: FactSheet, seed: int, number: int) -> Plan:
    """The plan of a number; equal for equal arguments, on every machine."""
    topics = (*TOPICS, *(fact.topic or fact.questions[0] for fact in sheet.more))
    return Plan(
        number=number,
        topic=_dealt(topics, f"{seed}/topic", number),
        persona=_dealt(PERSONAS, f"{seed}/persona", number),
        opening=_dealt(OPENINGS, f"{seed}/opening", number),
        num_exchanges=_dealt(LENGTHS, f"{seed}/length", number),
    )


def instructions(sheet: FactSheet, plan: Plan) -> list[dict[str, str]]:
    """The messages that ask a chat endpoint for the conversation of a plan."""
    known = "\n".join(f"- {answer}" for answer in sheet.known_answers().values())
    more = "".join(f"\n- {fact.topic or fact.questions[0]}: {fact.answer}" for fact in sheet.more)
    background = f"\nMore about it:\n{sheet.background}\n" if sheet.background else ""
    system = (
        "You write example conversations between a user and a small language model called "
        f"{sheet.name}. They teach it who it is, so all that it says about itself has to be true. "
        f"This is all that is known, in its own words:\n{known}{more}\n{background}"
        "Do not make up any other fact about it: no number, date, person or company that is not "
        "above. Where a user takes it for another assistant, it says that it is not. Its answers "
        "are short, simple and kind.\n"
        "Reply with one JSON array and nothing else. Its items are objects with a role, user and "
        "assistant in turn, user first and assistant last, and a content of plain text without "
        "Markdown."
    )
    exchanges = "1 exchange" if plan.num_exchanges == 1 else f"{plan.num_exchanges} exchanges"
    wanted = (
        f"Conversation {plan.number + 1}.\nTopic: {plan.topic}.\nThe user is {plan.persona}.\n"
        f"The user's first message is {plan.opening}.\nLength: {exchanges} (one message of each "
        "side is one exchange)."
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": wanted}]


class Earlier:
    """The conversations that were accepted so far, to tell news from what was said before."""

    def __init__(self) -> None:
        self._size = 0
        self._holders: dict[tuple[str, ...], list[int]] = {}
        self._openings: Counter[str] = Counter()

    def says_again(self, conversation: Conversation) -> str:
        """Why a conversation is no news: `same opening`, `near-duplicate`, or '' when it is."""
        if self._openings[_opening(conversation)] >= MAX_SAME_OPENING:
            return "same opening"
        shingles = _shingles(conversation)
        if len(shingles) < MIN_SHINGLES:
            return ""
        shared: Counter[int] = Counter()
        for shingle in shingles:
            shared.update(self._holders.get(shingle, ()))
        for count in shared.values():
            # Of the new one: a longer conversation that holds a short earlier one is news.
            if count > MAX_SHARED * len(shingles):
                return "near-duplicate"
        return ""

    def add(self, conversation: Conversation) -> None:
        """Remember one that was accepted."""
        shingles = _shingles(conversation)
        self._openings[_opening(conversation)] += 1
        for shingle in shingles:
            self._holders.setdefault(shingle, []).append(self._size)
        self._size += 1


def _opening(conversation: Conversation) -> str:
    return normalise(conversation.turns[0].text)


def _shingles(conversation: Conversation) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for message in conversation.turns:
        words = normalise(message.text).split()
        found.update(zip(*(words[start:] for start in range(SHINGLE_WORDS)), strict=False))
    return found


def _dealt(items: Sequence[Item], seed: str, number: int) -> Item:
    """Item `number` of endless shuffles of all items, each of which holds every item once."""
    block, place = divmod(number, len(items))
    order = list(range(len(items)))
    random.Random(f"{seed}/{block}").shuffle(order)
    return items[order[place]]
