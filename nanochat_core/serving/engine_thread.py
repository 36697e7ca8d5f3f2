"""The one thread that computes, and the queue before it.

Routes put a `Job` in and read its events; a job whose client went away is withdrawn, waiting or
not. Tokens are handed to the event loop as they come, and a job has few (`max_tokens`): a client
that reads slowly holds up nobody.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeAlias

from nanochat_core.errors import NanochatError
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.streaming import Piece
from nanochat_core.serving.problems import BusyError, FailedError, StoppingError, WithdrawnError
from nanochat_core.serving.replies import FinishReason, Reply
from nanochat_core.serving.requests import Question

logger = logging.getLogger(__name__)

JOIN_SECONDS = 2.0
"""A thread in the middle of a long prompt is left to die with the process after this."""


@dataclass(frozen=True)
class Finished:
    """The last event of a reply."""

    reason: FinishReason
    num_tokens: int


Event: TypeAlias = Piece | Finished | NanochatError


class Job:
    """One question on its way through the engine; made, read and withdrawn in the event loop."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.is_withdrawn = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def post(self, event: Event) -> None:
        """Hand an event over, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Piece | Finished]:
        """Pieces of the reply and `Finished`; raises what ended it otherwise."""
        while True:
            event = await self._events.get()
            if isinstance(event, NanochatError):
                raise event
            yield event
            if isinstance(event, Finished):
                return


class EngineThread:
    """Answers one job after the other, in the order they came."""

    def __init__(self, engine: InferenceEngine, max_waiting: int) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._is_stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are answered."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def num_waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Jobs that are being answered: 0 or 1."""
        return int(self._running is not None)

    def submit(self, job: Job) -> None:
        """Queue a job; BusyError when the queue is full, StoppingError when the server ends."""
        with self._changed:
            if self._is_stopping:
                raise StoppingError(_STOPPING)
            # One that finds nobody before it is as good as running.
            if len(self._waiting) >= self.max_waiting + (self._running is None):
                raise BusyError(
                    f"{len(self._waiting)} requests wait already, which is the limit; try again "
                    "in some seconds"
                )
            self._waiting.append(job)
            self._changed.notify()

    def withdraw(self, job: Job) -> None:
        """Forget a job, or stop it at its next token; one that is done is left alone."""
        with self._changed:
            job.is_withdrawn = True
            if job in self._waiting:
                self._waiting.remove(job)
        job.post(WithdrawnError("the client has gone"))

    def stop(self) -> None:
        """End every job with StoppingError, and take no more; returns at once."""
        with self._changed:
            self._is_stopping = True
            left = [*self._waiting, *([self._running] if self._running else [])]
            self._waiting.clear()
            self._changed.notify()
        for job in left:
            job.is_withdrawn = True
            job.post(StoppingError(_STOPPING))

    def join(self) -> None:
        """Wait for the thread, but not for long."""
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._answer(job)
            except Exception:
                # One reply failed (out of memory, say); the next may well succeed.
                logger.exception("a reply failed")
                job.post(
                    FailedError("the model failed while it answered; the server's log says why")
                )

    def _next(self) -> Job | None:
        with self._changed:
            self._running = None
            while not self._waiting and not self._is_stopping:
                self._changed.wait()
            if not self._is_stopping:
                self._running = self._waiting.popleft()
            return self._running

    def _answer(self, job: Job) -> None:
        question = job.question
        reply = Reply(self.engine.tokenizer, question.stops, question.max_tokens)
        tokens = self.engine.generate_ids(
            # The engine counts what it samples; `Reply` also counts tool output, so it ends first.
            question.prompt,
            question.settings,
            max_new_tokens=question.max_tokens,
        )
        for token in tokens:
            if job.is_withdrawn:
                return
            for piece in reply.feed(token):
                job.post(piece)
            if reply.finish_reason is not None:
                break
        for piece in reply.end():
            job.post(piece)
        job.post(Finished(reply.finish_reason or "stop", reply.num_tokens))


_STOPPING = "the server is stopping; start it again and repeat the request"
