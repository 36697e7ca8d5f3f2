"""Replies as JSON: whole ones and events of a stream, in the shapes of the OpenAI API.

`content` is the visible text. What the calculator was asked and what it answered comes beside it,
in our own field `nanochat_parts` of a choice: `[{"kind": "python", "text": "6*7"}, ...]`.
"""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from nanochat_core.inference.requests import FinishReason
from nanochat_core.serving.choices import Choice, parts_of, visible
from nanochat_core.serving.loaded import Delta
from nanochat_core.serving.logprobs import TextLogprobs, TokenNames
from nanochat_core.serving.requests import Question
from nanochat_core.tokenizer.tokenizer import Tokenizer

DONE = "data: [DONE]\n\n"
as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class Origin:
    """Which model answers; `fingerprint` is the artifact that its name stood for."""

    model: str
    fingerprint: str | None
    tokenizer: Tokenizer


class Writer(Protocol):
    """How replies of one endpoint are written."""

    endpoint: str

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """All replies as one object."""

    def opening(self) -> str:
        """The first events of a stream."""

    def delta(self, index: int, delta: Delta) -> str:
        """Events for what came of a reply."""

    def usage(self, choices: Sequence[Choice]) -> str:
        """The event that `stream_options.include_usage` asks for."""


class ChatWriter:
    """Writes /v1/chat/completions."""

    endpoint = "chat"

    def __init__(self, origin: Origin, question: Question) -> None:
        self._question, self._names = question, TokenNames(origin.tokenizer)
        self._common = _common("chatcmpl", origin)
        self._head = _Head(self._common, "chat.completion.chunk", question)
        self._has_logprobs = question.requests[0].num_logprobs is not None

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """All replies as one object."""
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_of(self._question, choices),
            "nanochat_dropped_messages": self._question.num_dropped_messages,
        }

    def opening(self) -> str:
        """Who speaks, once for each reply."""
        delta = {"role": "assistant", "content": ""}
        more = {"nanochat_dropped_messages": self._question.num_dropped_messages}
        return "".join(
            self._head.event(self._chunk(index, delta), **more)
            for index in range(len(self._question.requests))
        )

    def delta(self, index: int, delta: Delta) -> str:
        """Text, calculations, probabilities, and in the end why it ended."""
        if self._is_plain(delta):
            return self._head.text_event(index, delta.pieces[0].text)
        return "".join(map(self._head.event, self._chunks(index, delta)))

    def _is_plain(self, delta: Delta) -> bool:
        """Whether it is nothing but text, as nearly all deltas are."""
        return (
            len(delta.pieces) == 1
            and delta.pieces[0].kind == "text"
            and delta.finish_reason is None
            and not self._has_logprobs
        )

    def _chunks(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        logprobs = self._names.chat(delta.logprobs) if self._has_logprobs else None
        for is_text, run in groupby(delta.pieces, key=lambda piece: piece.kind == "text"):
            pieces = list(run)
            shown = {"content": visible(pieces)} if is_text else {}
            chunk = self._chunk(index, shown, logprobs=logprobs)
            logprobs = None
            yield chunk if is_text else {**chunk, "nanochat_parts": parts_of(pieces)}
        if logprobs is not None and delta.logprobs:
            yield self._chunk(index, {"content": ""}, logprobs=logprobs)
        if delta.finish_reason is not None:
            yield self._chunk(index, {}, finish_reason=delta.finish_reason)

    def usage(self, choices: Sequence[Choice]) -> str:
        """The event that `stream_options.include_usage` asks for."""
        return self._head.usage(choices)

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._names.chat(choice.logprobs) if self._has_logprobs else None,
            "finish_reason": choice.finish_reason,
            "nanochat_parts": choice.parts,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, str],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: FinishReason | None = None,
    ) -> dict[str, Any]:
        return {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }


class TextWriter:
    """Writes /v1/completions."""

    endpoint = "completions"

    def __init__(self, origin: Origin, question: Question) -> None:
        self._question = question
        self._common = _common("cmpl", origin)
        self._head = _Head(self._common, "text_completion", question)
        names = TokenNames(origin.tokenizer)
        has_logprobs = question.requests[0].num_logprobs is not None
        self._logprobs = [TextLogprobs(names) for _ in question.requests] if has_logprobs else []

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """All replies as one object."""
        return {
            **self._common,
            "object": "text_completion",
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_of(self._question, choices),
        }

    def opening(self) -> str:
        """The prompts, if they were asked for."""
        echoes = enumerate(self._question.echoes)
        return "".join(self._head.event(_text_chunk(index, echo)) for index, echo in echoes)

    def delta(self, index: int, delta: Delta) -> str:
        """Text and probabilities, and in the end why it ended."""
        text = visible(delta.pieces)
        chunks = []
        if text or delta.logprobs:
            logprobs = self._logprobs[index].tell(delta.logprobs) if self._logprobs else None
            chunks.append(_text_chunk(index, text, logprobs=logprobs))
        if delta.finish_reason is not None:
            chunks.append(_text_chunk(index, "", finish_reason=delta.finish_reason))
        return "".join(map(self._head.event, chunks))

    def usage(self, choices: Sequence[Choice]) -> str:
        """The event that `stream_options.include_usage` asks for."""
        return self._head.usage(choices)

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        echo = self._question.echoes[index] if self._question.echoes else ""
        logprobs = self._logprobs[index].tell(choice.logprobs) if self._logprobs else None
        return _text_chunk(
            index, echo + choice.text, logprobs=logprobs, finish_reason=choice.finish_reason
        )


class _Head:
    """What is equal in all events of a stream, written once."""

    def __init__(self, common: dict[str, Any], kind: str, question: Question) -> None:
        self._question = question
        head = as_json({**common, "object": kind})
        # With usage asked for, the other events say that they have none, as with OpenAI.
        more = ',"usage":null' if question.wants_usage else ""
        self._start = f"data: {head[:-1]}"
        self._before = f'{self._start}{more},"choices":['

    def event(self, choice: dict[str, Any], **more: int) -> str:
        """An event of one choice."""
        rest = f",{as_json(more)[1:]}" if more else "}"
        return f"{self._before}{as_json(choice)}]{rest}\n\n"

    def text_event(self, index: int, text: str) -> str:
        """The event of a chat's text, written in a third of the time of any other."""
        return (
            f'{self._before}{{"index":{index},"delta":{{"content":{as_json(text)}}},'
            '"logprobs":null,"finish_reason":null}]}\n\n'
        )

    def usage(self, choices: Sequence[Choice]) -> str:
        """The event of no choice."""
        usage = as_json(usage_of(self._question, choices))
        return f'{self._start},"choices":[],"usage":{usage}}}\n\n'


def usage_of(question: Question, choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens of prompts, each counted once, and of replies, tool output included."""
    prompt, reply = question.num_prompt_tokens, sum(choice.num_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": reply,
        "total_tokens": prompt + reply,
    }


def _common(kind: str, origin: Origin) -> dict[str, Any]:
    return {
        "id": f"{kind}-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": origin.model,
        "system_fingerprint": origin.fingerprint,
    }


def _text_chunk(
    index: int,
    text: str,
    *,
    logprobs: dict[str, Any] | None = None,
    finish_reason: FinishReason | None = None,
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def event(values: dict[str, Any]) -> str:
    """Any server-sent event."""
    return f"data: {as_json(values)}\n\n"
