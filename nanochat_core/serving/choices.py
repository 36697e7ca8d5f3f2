"""Several replies to one request, as one stream that ends together."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from nanochat_core.inference.replies import merged
from nanochat_core.inference.requests import FinishReason, TokenLogprob
from nanochat_core.inference.streaming import Piece
from nanochat_core.serving.loaded import Delta, ReplyStream


@dataclass
class Choice:
    """One reply as far as it has come."""

    pieces: list[Piece] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        """Take in what came of it."""
        self.pieces += delta.pieces
        self.logprobs += delta.logprobs
        self.num_tokens += delta.num_tokens
        self.finish_reason = delta.finish_reason

    @property
    def text(self) -> str:
        """What a reader sees of it: no code, no output of tools."""
        return visible(self.pieces)

    @property
    def parts(self) -> list[dict[str, str]]:
        """All of it, as JSON."""
        return parts_of(merged(self.pieces))


def visible(pieces: Sequence[Piece]) -> str:
    """The text among the pieces."""
    return "".join(piece.text for piece in pieces if piece.kind == "text")


def parts_of(pieces: Sequence[Piece]) -> list[dict[str, str]]:
    """Pieces as the field `nanochat_parts` has them."""
    return [{"kind": piece.kind, "text": piece.text} for piece in pieces]


async def deltas_of(streams: Sequence[ReplyStream]) -> AsyncGenerator[tuple[int, Delta], None]:
    """What comes of each reply, with its index, in the order of arrival, until all have ended.

    Of each stream one delta at most is taken ahead; what a slow reader leaves waits in the streams,
    where it becomes one large delta. An error in one ends all.
    """
    if len(streams) == 1:
        async for delta in streams[0]:
            yield 0, delta
        return
    looks = {_look(stream): index for index, stream in enumerate(streams)}
    try:
        while looks:
            done, _ = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
            for look in sorted(done, key=lambda look: looks[look]):
                delta, index = look.result(), looks.pop(look)
                if delta.finish_reason is None:
                    looks[_look(streams[index])] = index
                yield index, delta
    finally:
        for look in looks:
            look.cancel()
        # Errors of the others are heard, so that none is reported as lost.
        await asyncio.gather(*looks, return_exceptions=True)


def _look(stream: ReplyStream) -> asyncio.Task[Delta]:
    return asyncio.create_task(stream.__anext__())
