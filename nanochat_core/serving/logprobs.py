"""Tokens with their probabilities, in the two shapes of the OpenAI API."""

import codecs
from collections.abc import Sequence
from typing import Any

from nanochat_core.inference.requests import TokenLogprob
from nanochat_core.tokenizer.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0
"""JSON has no infinity; the OpenAI API tells impossible tokens with this number."""


class TokenNames:
    """Tokens as text: one that is no whole character reads `bytes:\\xf0\\x9f`, as with OpenAI."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def name(self, token: int) -> str:
        """A text that no other token has."""
        raw = self.raw(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def raw(self, token: int) -> bytes:
        """The bytes of a token; of a special one, its name's."""
        return self._tokenizer.decode_bytes([token])

    def chat(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """As /v1/chat/completions tells them."""
        content = [
            {
                **self._entry(one.token, one.logprob),
                "top_logprobs": [self._entry(token, value) for token, value in one.top],
            }
            for one in logprobs
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        is_special = self._tokenizer.is_special(token)
        return {
            "token": self.name(token),
            "logprob": _finite(logprob),
            "bytes": None if is_special else list(self.raw(token)),
        }


class TextLogprobs:
    """As /v1/completions tells them, over one continuation: offsets go on from delta to delta."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def tell(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The next tokens."""
        offsets = []
        for one in logprobs:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(self._names.raw(one.token)))
        name = self._names.name
        return {
            "tokens": [name(one.token) for one in logprobs],
            "token_logprobs": [_finite(one.logprob) for one in logprobs],
            # The picked one is always among them, so that there may be one more than asked for.
            "top_logprobs": [
                {
                    **{name(token): _finite(value) for token, value in one.top},
                    name(one.token): _finite(one.logprob),
                }
                for one in logprobs
            ],
            "text_offset": offsets,
        }


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
