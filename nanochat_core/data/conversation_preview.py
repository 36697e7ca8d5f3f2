"""A conversation as SFT sees it: its tokens as text, and which of them are trained on."""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nanochat_core.conversation.types import Conversation
from nanochat_core.data.conversation_rows import Fate, fate_of
from nanochat_core.tokenizer.chat_format import MAX_TOKENS, render
from nanochat_core.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer


@dataclass(frozen=True)
class Piece:
    """The text of a token, or of several that only together are whole characters."""

    text: str
    is_trained: bool
    is_special: bool


@dataclass(frozen=True)
class Preview:
    """A rendered conversation, counted and judged."""

    pieces: tuple[Piece, ...]
    num_tokens: int
    num_trained: int
    fate: Fate
    is_cut: bool
    """Whether tokens beyond the most that any conversation has were dropped."""


def preview_of(tokenizer: Tokenizer, conversation: Conversation, sequence_len: int) -> Preview:
    """What SFT makes of a conversation at a context of `sequence_len` tokens."""
    # One token more than is kept tells a cut conversation from one of just that length.
    ids, mask = render(tokenizer, conversation, max_tokens=MAX_TOKENS + 1)
    is_cut = len(ids) > MAX_TOKENS
    ids, mask = ids[:MAX_TOKENS], mask[:MAX_TOKENS]
    return Preview(
        pieces=tuple(_pieces(tokenizer, zip(ids, mask, strict=True))),
        num_tokens=len(ids),
        num_trained=sum(mask),
        fate=fate_of((ids, mask), sequence_len),
        is_cut=is_cut,
    )


def _pieces(tokenizer: Tokenizer, tokens: Iterable[tuple[int, int]]) -> Iterator[Piece]:
    names = dict(zip(tokenizer.special_ids.values(), SPECIAL_TOKENS, strict=True))
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    was_trained = False
    for token_id, trained in tokens:
        if token_id in names:
            if rest := decoder.decode(b"", final=True):
                yield Piece(rest, was_trained, is_special=False)
            decoder.reset()
            yield Piece(names[token_id], bool(trained), is_special=True)
            continue
        was_trained = bool(trained)
        if text := decoder.decode(tokenizer.decode_bytes([token_id])):
            yield Piece(text, was_trained, is_special=False)
    if rest := decoder.decode(b"", final=True):
        yield Piece(rest, was_trained, is_special=False)
