"""Tokens of a reply as text that can be shown at once: never half a character."""

import codecs
from typing import NamedTuple

from nanochat_core.conversation.types import PartKind
from nanochat_core.tokenizer.tokenizer import Tokenizer

_OPENING: dict[str, PartKind] = {"python_start": "python", "output_start": "python_output"}
_CLOSING = ("python_end", "output_end")


class Piece(NamedTuple):
    """A stretch of a reply as it comes in: of its text, of code, or of the tool's output."""

    kind: PartKind
    text: str


class ReplyDecoder:
    """Turns tokens into pieces; bytes of an unfinished UTF-8 character wait for the rest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ranks, self._texts = tokenizer.ranks, tokenizer.texts
        self._is_between_characters = True
        self._kind: PartKind = "text"
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._opening = {tokenizer.special_id(n): kind for n, kind in _OPENING.items()}
        self._closing = {tokenizer.special_id(n) for n in _CLOSING}

    def feed(self, token: int) -> Piece | None:
        """The text that this token completes, or None when there is none."""
        if token < len(self._texts):
            text = self._texts[token]
            if text is not None and self._is_between_characters:
                return Piece(self._kind, text)
            text = self._decoder.decode(self._ranks[token])
            self._is_between_characters = not self._decoder.getstate()[0]
            return self._piece(text)
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
        self._is_between_characters = True
        return piece

    def _piece(self, text: str) -> Piece | None:
        return Piece(self._kind, text) if text else None
