"""From a question to an answer: replies begin together, and end when their client leaves."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from nanochat_core.errors import NanochatError
from nanochat_core.serving.choices import Choice, deltas_of
from nanochat_core.serving.completions import DONE, Writer, event
from nanochat_core.serving.loaded import Delta, LoadedModel
from nanochat_core.serving.metrics import Metrics
from nanochat_core.serving.problems import WithdrawnError, answer_to
from nanochat_core.serving.requests import Question

Result = TypeVar("Result")
CANCELLED = "cancelled"


class Answering:
    """The replies to one question, from the moment that they have their places in the queue.

    Raises BusyError or StoppingError when there are none for all of them.
    """

    def __init__(
        self, model: LoadedModel, question: Question, writer: Writer, metrics: Metrics
    ) -> None:
        self._question, self._writer = question, writer
        self._streams = model.submit(question.requests)
        self._choices = [Choice() for _ in self._streams]
        self._tally = Tally(metrics, model.name, writer.endpoint, question)
        self._deltas = deltas_of(self._streams)

    async def respond(self, receive: Receive) -> Response:
        """The answer, or one that streams; raises what ended a reply before its first token."""
        try:
            if self._question.is_streamed:
                # An error before the first piece still gets the status that belongs to it.
                return EventStream(self, await until_gone(self._next(), receive))
            whole = await until_gone(self._collect(), receive)
        except NanochatError as error:
            await self.end(CANCELLED if isinstance(error, WithdrawnError) else _code_of(error))
            raise
        except BaseException:
            await self.end()
            raise
        await self.end()
        return JSONResponse(whole)

    async def end(self, reason: str = CANCELLED) -> None:
        """Give up what still runs."""
        for stream in self._streams:
            stream.cancel()
        self._tally.end(reason, self._choices)
        await self._deltas.aclose()

    async def events(self, first: str) -> AsyncGenerator[str, None]:
        """The events of a stream, with what came first; an error is an event, too."""
        yield self._writer.opening() + first
        try:
            async for index, delta in self._deltas:
                yield self._written(index, delta)
        except NanochatError as error:
            await self.end(_code_of(error))
            yield event(answer_to(error).body)
            return
        if self._question.wants_usage:
            yield self._writer.usage(self._choices)
        yield DONE

    async def _next(self) -> str:
        return self._written(*await anext(self._deltas))

    def _written(self, index: int, delta: Delta) -> str:
        self._take(index, delta)
        return self._writer.delta(index, delta)

    async def _collect(self) -> dict[str, Any]:
        async for index, delta in self._deltas:
            self._take(index, delta)
        return self._writer.whole(self._choices)

    def _take(self, index: int, delta: Delta) -> None:
        self._choices[index].add(delta)
        self._tally.take(index, self._choices[index])


class EventStream(Response):
    """Server-sent events of replies, which are given up when their client leaves."""

    media_type = "text/event-stream"

    def __init__(self, answering: Answering, first: str) -> None:
        # Proxies that collect answers would hold the stream back.
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._answering, self._first = answering, first

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the last one, or until nobody reads them."""
        try:
            await until_gone(self._send_all(send), receive)
        except (WithdrawnError, OSError):
            return
        finally:
            await self._answering.end()

    async def _send_all(self, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        async with aclosing(self._answering.events(self._first)) as events:
            async for text in events:
                body = text.encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Tally:
    """Counts replies while they come, and how fast."""

    def __init__(self, metrics: Metrics, model: str, endpoint: str, question: Question) -> None:
        self._metrics, self._model, self._question = metrics, model, question
        self._begin = time.monotonic()
        self._firsts: dict[int, float] = {}
        self._open = set(range(len(question.requests)))
        for _ in self._open:
            metrics.started(model, endpoint)

    def take(self, index: int, choice: Choice) -> None:
        """Something came of a reply."""
        now = time.monotonic()
        if choice.num_tokens and index not in self._firsts:
            self._firsts[index] = now
            self._metrics.first_token(self._model, now - self._begin)
        if choice.finish_reason is not None:
            self._end(index, choice.finish_reason, choice.num_tokens, now)

    def end(self, reason: str, choices: list[Choice]) -> None:
        """Whatever is still open has ended for this reason."""
        now = time.monotonic()
        for index in list(self._open):
            self._end(index, reason, choices[index].num_tokens, now)

    def _end(self, index: int, reason: str, num_tokens: int, now: float) -> None:
        self._open.discard(index)
        seconds = now - self._firsts.get(index, now)
        # A reply that came all at once says nothing about its pace.
        is_paced = num_tokens > 1 and seconds > 0.0
        self._metrics.finished(
            self._model,
            reason,
            self._question.num_new_prompt_tokens(index),
            num_tokens,
            seconds / (num_tokens - 1) if is_paced else None,
        )


async def until_gone(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """What `work` returns; WithdrawnError, and the end of the work, when the client leaves."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise WithdrawnError("the client has gone")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _code_of(error: NanochatError) -> str:
    return answer_to(error).code
