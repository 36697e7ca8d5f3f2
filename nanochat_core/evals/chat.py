"""Held-out questions put to a chat model, one turn each, answered greedily."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanochat_core.conversation.answers import states_any
from nanochat_core.conversation.identity import ModelFacts, held_out_questions
from nanochat_core.conversation.sums import held_out_sums
from nanochat_core.conversation.types import Conversation, user
from nanochat_core.errors import ConfigError
from nanochat_core.tokenizer.chat_format import parse_reply, render_prompt
from nanochat_core.tokenizer.tokenizer import Tokenizer

Kind = Literal["name", "depth", "parameters", "sums"]
IDENTITY_KINDS = ("name", "depth", "parameters")

Generate = Callable[[Sequence[list[int]]], list[list[int]]]
"""Prompts (token ids) to the tokens of their greedy replies, tool output included."""


@dataclass(frozen=True)
class ChatQuestion:
    """A question and the values of which a right answer states one."""

    kind: Kind
    question: str
    accept: tuple[str, ...]

    def is_answered_by(self, reply: str) -> bool:
        """Whether a reply is right: an accepted value stands in it as words of its own.

        A sum may be repeated before it is answered, and 7 is in "0 + 7 = 9": what stands before
        the last equals sign does not count.
        """
        return states_any(reply.rpartition("=")[2] if self.kind == "sums" else reply, self.accept)


@dataclass(frozen=True)
class ChatAnswer:
    """What the model said to a question."""

    question: ChatQuestion
    answer: str

    @property
    def is_right(self) -> bool:
        """Whether the answer counts."""
        return self.question.is_answered_by(self.answer)

    def record(self) -> dict[str, Any]:
        """One entry of answers.json."""
        return {
            "kind": self.question.kind,
            "question": self.question.question,
            "answer": self.answer,
            "accept": list(self.question.accept),
            "right": self.is_right,
        }


def make_questions(facts: ModelFacts, *, identity: int, sums: int, seed: int) -> list[ChatQuestion]:
    """The first `identity` held-out questions about the model, then `sums` held-out sums.

    Raises ConfigError when there are not that many.
    """
    about_itself = held_out_questions(facts)
    if identity > len(about_itself):
        raise ConfigError(
            f"identity_questions={identity}; there are {len(about_itself)} held-out questions"
        )
    questions = [
        ChatQuestion(kind=q.kind, question=q.question, accept=q.accept)
        for q in about_itself[:identity]
    ]
    return questions + [
        ChatQuestion(kind="sums", question=q.question, accept=(q.answer,))
        for q in held_out_sums(sums, seed)
    ]


def ask(
    questions: Sequence[ChatQuestion],
    tokenizer: Tokenizer,
    generate: Generate,
    *,
    batch_size: int,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[ChatAnswer]:
    """Put every question in a conversation of its own; `on_done` gets how many are answered."""
    answers: list[ChatAnswer] = []
    for first in range(0, len(questions), batch_size):
        batch = questions[first : first + batch_size]
        prompts = [
            render_prompt(tokenizer, Conversation(messages=(user(item.question),)))
            for item in batch
        ]
        for item, reply in zip(batch, generate(prompts), strict=True):
            answers.append(ChatAnswer(item, visible_text(tokenizer, reply)))
        on_done(len(answers))
    return answers


def visible_text(tokenizer: Tokenizer, reply: Sequence[int]) -> str:
    """What a reader sees of a reply: its text, without code and tool output."""
    parts = parse_reply(tokenizer, reply)
    return "".join(part.text for part in parts if part.kind == "text").strip()


def chat_scores(answers: Sequence[ChatAnswer]) -> dict[str, float | int]:
    """Share of right answers by group (`identity` and its three kinds, `sums`), and the counts."""
    scores: dict[str, float | int] = {}
    groups = {"identity": IDENTITY_KINDS, **{kind: (kind,) for kind in (*IDENTITY_KINDS, "sums")}}
    for group, kinds in groups.items():
        members = [answer for answer in answers if answer.question.kind in kinds]
        if members:
            right = sum(answer.is_right for answer in members)
            scores |= {
                group: right / len(members),
                f"{group}/right": right,
                f"{group}/asked": len(members),
            }
    return scores
