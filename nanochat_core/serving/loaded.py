"""A model that answers: its replicas, the queue before them, and replies as they come in."""

import asyncio
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from nanochat_core.conversation.types import PartKind
from nanochat_core.errors import NanochatError
from nanochat_core.inference.requests import EngineStats, FinishReason, Request, TokenLogprob
from nanochat_core.inference.streaming import Piece
from nanochat_core.serving.link import WorkerLink
from nanochat_core.serving.problems import BusyError, StoppingError, WithdrawnError
from nanochat_core.serving.wire import Event, ModelFacts
from nanochat_core.tokenizer.tokenizer import Tokenizer

STOPPING = "the server is stopping; start it again and repeat the request"
MANY_PIECES = 64
"""A piece takes many times the memory of its text, so unread ones are joined from here on."""


@dataclass(frozen=True)
class Delta:
    """Everything that came of a reply since the last look; the last one has `finish_reason`.

    `num_tokens` counts the tokens of the reply, those of tools included.
    """

    pieces: tuple[Piece, ...]
    logprobs: tuple[TokenLogprob, ...]
    num_tokens: int
    finish_reason: FinishReason | None


class ReplyStream:
    """One reply, read by one task: `async for delta in stream`, which raises what ended it.

    What nobody has read yet is kept as text, so that a slow reader costs no more than the reply
    and gets few large deltas. Made by `LoadedModel.submit`.
    """

    def __init__(self, link: WorkerLink, request: Request) -> None:
        self._pieces: list[tuple[PartKind, str]] = []
        self._logprobs: list[TokenLogprob] = []
        self._num_tokens = 0
        self._finish_reason: FinishReason | None = None
        self._error: NanochatError | None = None
        self._is_over = False
        self._news = asyncio.Event()
        self._link = link
        self._number = link.submit(request, self)

    def __aiter__(self) -> "ReplyStream":
        return self

    async def __anext__(self) -> Delta:
        if self._is_over:
            raise StopAsyncIteration
        await self._news.wait()
        self._news.clear()
        if self._has_text or self._finish_reason is not None:
            return self._take()
        assert self._error is not None, "there is no other news"
        self._is_over = True
        raise self._error

    def cancel(self) -> None:
        """Give the reply up; its row is free from the engine's next step on."""
        if self._finish_reason is None and self._error is None:
            self._link.cancel(self._number)
            self._pieces.clear()
            self._logprobs.clear()
            self.fail(WithdrawnError("the client has gone"))

    def take(self, event: Event) -> None:
        """Add what a step did; called by the link."""
        if self._error is not None:
            return
        self._pieces += event.pieces
        if len(self._pieces) >= MANY_PIECES:
            self._pieces = _joined(self._pieces)
        if (logprob := event.token_logprob) is not None:
            self._logprobs.append(logprob)
        self._num_tokens += event.num_tokens
        self._finish_reason = event.finish_reason
        # Half a character is no news.
        if self._has_text or self._finish_reason is not None:
            self._news.set()

    def fail(self, error: NanochatError) -> None:
        """End the reply with an error, after what has come of it; called by the link."""
        if self._error is None and self._finish_reason is None:
            self._error = error
            self._news.set()

    @property
    def _has_text(self) -> bool:
        return bool(self._pieces or self._logprobs)

    def _take(self) -> Delta:
        pieces = [Piece(kind, text) for kind, text in _joined(self._pieces)]
        delta = Delta(tuple(pieces), tuple(self._logprobs), self._num_tokens, self._finish_reason)
        self._pieces, self._logprobs, self._num_tokens = [], [], 0
        self._is_over = self._finish_reason is not None
        if self._error is not None:
            self._news.set()
        return delta


def _joined(pieces: Sequence[tuple[PartKind, str]]) -> list[tuple[PartKind, str]]:
    """Neighbours of one kind as one."""
    runs = groupby(pieces, key=itemgetter(0))
    return [(kind, "".join(text for _, text in run)) for kind, run in runs]


class LoadedModel:
    """One model in memory, as one or more engine processes; belongs to the event loop.

    `name` is what it was first asked for by, `target` the catalog's entry that it is. `links` may
    hold some that have died: the pool replaces them.
    """

    def __init__(self, name: str, target: str, tokenizer: Tokenizer, max_waiting: int) -> None:
        self.name, self.target, self.tokenizer = name, target, tokenizer
        self.max_waiting = max_waiting
        self.links: list[WorkerLink] = []
        self._refusal: NanochatError | None = None

    @property
    def facts(self) -> ModelFacts:
        """Of any replica: all are equal."""
        return self.links[0].facts

    @property
    def is_alive(self) -> bool:
        """Whether any replica can answer."""
        return any(link.is_alive for link in self.links)

    @property
    def num_open(self) -> int:
        """Replies that have not ended; cancelled ones count until the engine has freed them."""
        return sum(link.num_open for link in self.links)

    @property
    def num_waiting(self) -> int:
        """Replies that have no row yet."""
        return sum(link.num_waiting for link in self.links)

    @property
    def num_running(self) -> int:
        """Replies that have a row."""
        return self.num_open - self.num_waiting

    @property
    def stats(self) -> EngineStats:
        """As the engines said last, all replicas together."""
        every = [vars(link.stats).values() for link in self.links]
        return EngineStats(*map(sum, zip(*every, strict=True)))

    def submit(self, requests: Sequence[Request]) -> list[ReplyStream]:
        """Start replies, all or none.

        Raises BusyError when more than `max_waiting` would wait, StoppingError when the server
        ends. A request that cannot work at all raises ConfigError when its stream is read.
        """
        if self._refusal is not None:
            raise copy(self._refusal)
        links = [link for link in self.links if link.is_alive]
        if not links:
            raise BusyError(f"the model {self.name!r} is being started again; ask once more")
        room = self.max_waiting + sum(link.num_free_rows for link in links)
        if len(requests) > room:
            raise BusyError(
                f"{self.num_waiting} replies of {self.name!r} wait already, and {len(requests)} "
                f"more are too many (limit {self.max_waiting}); try again in some seconds"
            )
        return [ReplyStream(link, request) for link, request in _placed(links, requests)]

    def refuse(self, error: NanochatError) -> None:
        """Take no more requests; those that run go on."""
        self._refusal = error

    async def close(self, error: NanochatError | None = None) -> None:
        """End all replies with `error` (the server stops), and the processes."""
        reason = error or StoppingError(STOPPING)
        self.refuse(reason)
        await asyncio.gather(*(link.close(reason) for link in self.links))


def _placed(
    links: Sequence[WorkerLink], requests: Sequence[Request]
) -> list[tuple[WorkerLink, Request]]:
    """Each request's replica: all on one that has room for them, where they share what they can,
    else each where fewest wait."""
    free = {link: link.num_free_rows for link in links}
    placed = []
    for request in requests:
        link = max(free, key=lambda link: free[link])
        free[link] -= 1
        placed.append((link, request))
    if placed and placed[0][0].num_free_rows >= len(requests):
        return [(placed[0][0], request) for request in requests]
    return placed
