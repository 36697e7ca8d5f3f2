"""Conversations as values: what was said, by whom, and which parts came from a tool."""

from typing import Literal

from pydantic import Field, model_validator

from nanochat_core.config.base import Config
from nanochat_core.errors import DataError

Role = Literal["system", "user", "assistant"]
PartKind = Literal["text", "python", "python_output"]


class Part(Config):
    """A stretch of a message: plain text, code for the calculator, or what it answered."""

    kind: PartKind = "text"
    text: str


class Message(Config):
    """What one side said; only an assistant's message may have parts other than text."""

    role: Role
    parts: tuple[Part, ...] = Field(min_length=1)

    @property
    def text(self) -> str:
        """The text parts joined, without code and tool output."""
        return "".join(part.text for part in self.parts if part.kind == "text")


class Conversation(Config):
    """Messages in turn: at most one system message first, then user, assistant, user, ...

    Raises `DataError` for any other order, so that whoever holds a conversation can render it.
    """

    messages: tuple[Message, ...]

    @model_validator(mode="after")
    def _check_turns(self) -> "Conversation":
        roles = [message.role for message in self.messages]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
        if not turns or turns != expected:
            raise DataError(
                f"a conversation has the roles {', '.join(roles) or '(none)'}; expected an "
                "optional system message, then user and assistant in turn, user first"
            )
        for message in self.messages:
            if message.role != "assistant" and any(p.kind != "text" for p in message.parts):
                raise DataError(
                    f"a {message.role} message holds a python part; only the assistant's may: "
                    "give it as text"
                )
        return self

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages without the system message."""
        return self.messages[1:] if self.messages[0].role == "system" else self.messages

    @property
    def system(self) -> Message | None:
        """The leading system message, if there is one."""
        return self.messages[0] if self.messages[0].role == "system" else None


def system(text: str) -> Message:
    """An instruction that stands before the conversation."""
    return Message(role="system", parts=(Part(text=text),))


def user(text: str) -> Message:
    """A user's message."""
    return Message(role="user", parts=(Part(text=text),))


def assistant(*parts: Part | str) -> Message:
    """An assistant's message; plain strings are text parts."""
    return Message(
        role="assistant",
        parts=tuple(Part(text=part) if isinstance(part, str) else part for part in parts),
    )


def python(code: str) -> Part:
    """Code that the assistant gives to the calculator."""
    return Part(kind="python", text=code)


def python_output(text: str) -> Part:
    """What the calculator answered; never trained on."""
    return Part(kind="python_output", text=text)


def exchange(question: str, *answer: Part | str) -> Conversation:
    """One question and its answer."""
    return Conversation(messages=(user(question), assistant(*answer)))
