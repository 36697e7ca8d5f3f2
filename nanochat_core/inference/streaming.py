"""Tokens of a reply as text that can be shown at once: never half a character."""

import codecs
from dataclasses import dataclass

from nanochat_core.conversation.types import PartKind
from nanochat_core.tokenizer.tokenizer import Tokenizer

_OPENING: dict[str, PartKind] = {"python_start": "python", "output_start": "python_output"}
_CLOSING = ("python_end", "output_end")


@dataclass(frozen=True)
class Piece:
    """A stretch of a reply as it comes in: of its text, of code, or of the tool's output."""

    kind: PartKind
    text: str


class ReplyDecoder:
    """Turns tokens into pieces; bytes of an unfinished UTF-8 character wait for the rest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kind: PartKind = "text"
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._opening = {tokenizer.special_id(n): kind for n, kind in _OPENING.items()}
        self._closing = {tokenizer.special_id(n) for n in _CLOSING}

    def feed(self, token: int) -> Piece | None:
        """The text that this token completes, or None when there is none."""
        if not self._tokenizer.is_special(token):
            return self._piece(self._decoder.decode(self._tokenizer.decode_bytes([token])))
        piece = self.finish()
        if token in self._opening:
            self._kind = self._opening[token]
        elif token in self._closing:
            self._kind = "text"
        return piece

    def finish(self) -> Piece | None:
        """What is left at the end: U+FFFD for a character that was never completed."""
        piece = self._piece(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        return piece

    def _piece(self, text: str) -> Piece | None:
        return Piece(self._kind, text) if text else None
