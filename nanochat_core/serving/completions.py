"""Replies as JSON: whole ones and chunks of a stream, in the shapes of the OpenAI API.

`content` is the visible text. What the calculator was asked and what it answered comes beside it,
in our own field `nanochat_parts` of a choice: `[{"kind": "python", "text": "6*7"}, ...]`.
"""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from nanochat_core.inference.streaming import Piece
from nanochat_core.serving.engine_thread import Finished
from nanochat_core.serving.replies import merged
from nanochat_core.serving.requests import Question

DONE = "data: [DONE]\n\n"


class Completion:
    """One reply's identity, and how its pieces read as JSON."""

    def __init__(self, model: str, question: Question) -> None:
        self.question = question
        self._common = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, pieces: Sequence[Piece], finished: Finished) -> dict[str, Any]:
        """The reply as one object."""
        text = "".join(piece.text for piece in pieces if piece.kind == "text")
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finished.reason,
            "nanochat_parts": [_as_json(piece) for piece in merged(pieces)],
        }
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self.usage(finished),
            "nanochat_dropped_messages": self.question.num_dropped_messages,
        }

    def opening(self) -> dict[str, Any]:
        """The first chunk: who speaks."""
        dropped = self.question.num_dropped_messages
        chunk = self._chunk({"role": "assistant", "content": ""})
        return {**chunk, "nanochat_dropped_messages": dropped}

    def piece(self, piece: Piece) -> dict[str, Any]:
        """A chunk of text, or of a calculation."""
        if piece.kind == "text":
            return self._chunk({"content": piece.text})
        return self._chunk({}, nanochat_parts=[_as_json(piece)])

    def closing(self, finished: Finished) -> dict[str, Any]:
        """The last chunk of the choice: why it ended."""
        return self._chunk({}, finish_reason=finished.reason)

    def usage_chunk(self, finished: Finished) -> dict[str, Any]:
        """The chunk without a choice that `stream_options.include_usage` asks for."""
        return {**self._chunk({}), "choices": [], "usage": self.usage(finished)}

    def usage(self, finished: Finished) -> dict[str, int]:
        """Tokens of the prompt and of the reply, tool output included."""
        prompt, reply = len(self.question.prompt), finished.num_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": reply,
            "total_tokens": prompt + reply,
        }

    def _chunk(
        self, delta: dict[str, Any], *, finish_reason: str | None = None, **more: Any
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {
            **self._common,
            "object": "chat.completion.chunk",
            "choices": [{**choice, **more}],
        }


def _as_json(piece: Piece) -> dict[str, str]:
    return {"kind": piece.kind, "text": piece.text}


def event(values: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"
