"""A request for a chat completion: read as the OpenAI API writes it, checked against the limits."""

import reprlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from nanochat_core.conversation.types import Conversation, Message, Part, Role
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.sampler import SamplingSettings
from nanochat_core.serving.problems import RequestError, UnknownModelError
from nanochat_core.serving.settings import Limits, ServerSettings
from nanochat_core.tokenizer.chat_format import MAX_TOKENS, render, render_prompt, trim_history
from nanochat_core.tokenizer.tokenizer import Tokenizer

Number = TypeVar("Number", int, float)

SMALLEST_TOP_P = 1e-9
"""`top_p` 0 is valid in the OpenAI API; like this it keeps the most likely token alone."""


class ChatMessage(BaseModel):
    """One message; `nanochat_parts` of an earlier reply may stand in for its `content`."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None
    nanochat_parts: list[Part] | None = None


class StreamOptions(BaseModel):
    """What a stream brings beside the reply."""

    include_usage: bool = False


class ChatCompletionRequest(BaseModel):
    """Fields that count here; others are ignored, save those of `_UNSUPPORTED`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    messages: list[ChatMessage]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None


_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
}
"""Fields that would change the reply if they were heard, and the values that ask for nothing."""


@dataclass(frozen=True)
class Question:
    """A checked request, as the engine needs it."""

    prompt: tuple[int, ...]
    settings: SamplingSettings
    max_tokens: int
    stops: tuple[str, ...]
    num_dropped_messages: int


def read_question(
    body: ChatCompletionRequest, engine: InferenceEngine, server: ServerSettings
) -> Question:
    """Check a request and render its prompt.

    The oldest exchanges are dropped until the prompt fits, as in `nanochat chat`. Raises
    RequestError for what is asked, DataError for messages in no order of turns.
    """
    _check_supported(body, server)
    conversation = _conversation(body.messages, server.limits)
    room = min(MAX_TOKENS, engine.model.max_positions // 2)
    recent = _recent(engine.tokenizer, conversation, room)
    trimmed = trim_history(engine.tokenizer, recent, max_tokens=room)
    prompt = render_prompt(engine.tokenizer, trimmed, max_tokens=1 << 30)
    if len(prompt) > room:
        raise RequestError(
            f"the last message needs a prompt of {len(prompt):,} tokens, this model takes "
            f"{room:,}; shorten it",
            param="messages",
            code="context_length_exceeded",
        )
    return Question(
        prompt=tuple(prompt),
        settings=_sampling(body, server),
        max_tokens=min(_max_tokens(body, server), engine.model.max_positions - len(prompt)),
        stops=_stops(body.stop, server.limits),
        num_dropped_messages=len(conversation.messages) - len(trimmed.messages),
    )


def _check_supported(body: ChatCompletionRequest, server: ServerSettings) -> None:
    if body.model not in (None, "", server.name):
        raise UnknownModelError(
            f"the model {reprlib.repr(body.model)} is not served here; there is {server.name!r}",
            param="model",
        )
    for name, neutral in _UNSUPPORTED.items():
        given = (body.model_extra or {}).get(name)
        if given is not None and given not in neutral:
            raise RequestError(
                f"{name}={reprlib.repr(given)} is not supported; leave it out, or give "
                f"{neutral[0]!r}",
                param=name,
                code="unsupported_value",
            )


def _conversation(messages: Sequence[ChatMessage], limits: Limits) -> Conversation:
    if not messages:
        raise RequestError("messages is empty; give at least one of the user's", param="messages")
    _check_most("messages", len(messages), limits.max_messages, "messages")
    read = tuple(_message(i, message) for i, message in enumerate(messages))
    total = 0
    for i, message in enumerate(read):
        length = sum(len(part.text) for part in message.parts)
        _check_most(f"messages[{i}]", length, limits.max_message_characters, "characters")
        total += length
    _check_most("messages", total, limits.max_total_characters, "characters in all")
    if read[-1].role == "assistant":
        raise RequestError(
            "messages ends with one of the assistant's; expected the user's", param="messages"
        )
    return Conversation(messages=read)


def _recent(tokenizer: Tokenizer, conversation: Conversation, room: int) -> Conversation:
    """The conversation without the exchanges that cannot fit, whatever the system's text takes.

    `trim_history` alone renders everything again for each one that it drops: seconds for 500.
    """
    head = () if conversation.system is None else (conversation.system,)
    turns, first, num_tokens = conversation.turns, len(conversation.turns) - 1, 0
    while first >= 0:
        exchange = Conversation(messages=turns[first : first + 2])
        num_tokens += len(render(tokenizer, exchange, max_tokens=room)[0]) - 1
        if num_tokens > room and first < len(turns) - 1:
            break
        first -= 2
    return Conversation(messages=(*head, *turns[max(first + 2, 0) :]))


def _message(index: int, message: ChatMessage) -> Message:
    role: Role = "system" if message.role == "developer" else message.role
    if message.nanochat_parts and role == "assistant":
        return Message(role=role, parts=tuple(message.nanochat_parts))
    text = message.content
    if isinstance(text, list):
        text = "".join(_part_text(f"messages[{index}].content[{i}]", p) for i, p in enumerate(text))
    # An assistant may have said nothing, and its turn still counts.
    if not text and role != "assistant":
        raise RequestError(
            f"messages[{index}] of the {role} has no text; leave it out, or say something",
            param=f"messages[{index}].content",
        )
    return Message(role=role, parts=(Part(text=text or ""),))


def _part_text(place: str, part: dict[str, Any]) -> str:
    text = part.get("text")
    if part.get("type") != "text" or not isinstance(text, str):
        raise RequestError(
            f"{place} is of type {part.get('type')!r}; this model reads text only: "
            'give {"type": "text", "text": "..."}',
            param=place,
            code="unsupported_value",
        )
    return text


def _check_most(param: str, given: int, most: int, unit: str) -> None:
    if given > most:
        raise RequestError(
            f"{param} has {given:,} {unit}, the limit is {most:,}; send less, or start a new "
            "conversation",
            param=param,
        )


def _sampling(body: ChatCompletionRequest, server: ServerSettings) -> SamplingSettings:
    limits = server.limits
    return SamplingSettings(
        temperature=_in_range(
            "temperature", body.temperature, server.temperature, 0, limits.max_temperature
        ),
        top_k=_in_range("top_k", body.top_k, server.top_k, 0, limits.max_top_k),
        top_p=max(_in_range("top_p", body.top_p, 1.0, 0, 1.0), SMALLEST_TOP_P),
        # Without a seed each request is a new draw, as with the OpenAI API.
        seed=secrets.randbits(63) if body.seed is None else body.seed,
    )


def _max_tokens(body: ChatCompletionRequest, server: ServerSettings) -> int:
    most = server.limits.max_tokens
    given = body.max_completion_tokens
    if given is not None:
        return _in_range("max_completion_tokens", given, server.max_tokens, 1, most)
    return _in_range("max_tokens", body.max_tokens, server.max_tokens, 1, most)


def _in_range(
    name: str, given: Number | None, default: Number, least: Number, most: Number
) -> Number:
    if given is None:
        return default
    if not least <= given <= most:
        raise RequestError(f"{name}={given}; give {least:g} to {most:,g}", param=name)
    return given


def _stops(stop: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    _check_most("stop", len(stops), limits.max_stop_strings, "strings")
    if "" in stops:
        raise RequestError("stop holds an empty text; leave it out", param="stop")
    return tuple(stops)
