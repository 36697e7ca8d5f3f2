"""The front's side of one engine process."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from itertools import count
from typing import Protocol

from nanochat_core import errors
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.inference.requests import Request
from nanochat_core.serving.problems import FailedError
from nanochat_core.serving.wire import (
    MAX_LINE_BYTES,
    Cancel,
    Event,
    Failure,
    Ready,
    Refused,
    Step,
    Submit,
    decode_report,
    encode,
)

WORKER_MODULE = "nanochat_core.serving.worker"
END_SECONDS = 3.0
"""An engine in the middle of a step notices the end of its commands all the same, at once; one
that hangs in a driver is killed after this."""

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """What takes in a reply."""

    def take(self, event: Event) -> None:
        """Take what a step did."""

    def fail(self, error: NanochatError) -> None:
        """Hear that nothing more comes."""


class WorkerLink:
    """One engine process that is ready: `start` makes it."""

    def __init__(self, process: asyncio.subprocess.Process, ready: Ready, name: str) -> None:
        self.facts, self.num_devices, self.stats = ready.facts, ready.num_devices, ready.stats
        self.name = name
        self.is_alive = True
        self.num_finished = 0
        self.on_death: Callable[[WorkerLink], None] = lambda _link: None
        self._process, self._sinks = process, dict[int, Sink]()
        self._numbers = count(1)
        self._closing: NanochatError | None = None
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, arguments: Sequence[str], name: str) -> "WorkerLink":
        """Start an engine process and wait until it is ready; raises what kept it from it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", WORKER_MODULE, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            # Ctrl-C in a terminal is for the server, which lets replies come to their end.
            start_new_session=True,
        )
        try:
            ready = await _first_report(process, name)
        except BaseException:
            await _end(process, 0.0)
            raise
        return cls(process, ready, name)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def num_open(self) -> int:
        """Replies that have not ended."""
        return len(self._sinks)

    @property
    def num_free_rows(self) -> int:
        """Rows that nobody has or waits for; below zero, how many replies wait."""
        return self.facts.num_rows - len(self._sinks) if self.is_alive else 0

    @property
    def num_waiting(self) -> int:
        """Replies that have no row yet; the engine may have less room than it has rows."""
        told = min(self.stats.num_waiting, self.num_open)
        return max(told, -self.num_free_rows)

    def submit(self, request: Request, sink: Sink) -> int:
        """Start a reply; what comes of it, and its end, goes to `sink`."""
        number = next(self._numbers)
        self._sinks[number] = sink
        self._write(encode(Submit(number, request)))
        return number

    def cancel(self, number: int) -> None:
        """Give a reply up; it counts as open until the engine has freed its row."""
        if number in self._sinks:
            self._write(encode(Cancel(number)))

    async def close(self, reason: NanochatError) -> None:
        """End every reply with `reason`, then the process."""
        if self._closing is None:
            self._closing = reason
            self._fail_all(reason)
        await _end(self._process, END_SECONDS)
        await asyncio.wait([self._reading], timeout=END_SECONDS)

    def _write(self, line: bytes) -> None:
        # Never waits. What piles up before an engine that does not read is as much as may wait.
        assert self._process.stdin is not None
        if self.is_alive and self._closing is None:
            self._process.stdin.write(line)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                report = decode_report(line)
                if isinstance(report, Step):
                    self._take(report)
                # Lines that wait already are read without a pause, and others want a turn.
                await asyncio.sleep(0)
        except ValueError as error:
            logger.error("the engine of %s is ended, which wrote %s", self.name, error)
        await self._finish()

    def _take(self, step: Step) -> None:
        self.stats = step.stats
        for event in step.events:
            if event.finish_reason is None:
                sink = self._sinks.get(event.number)
            else:
                sink = self._sinks.pop(event.number, None)
                self.num_finished += 1
            if sink is not None:
                sink.take(event)
        for failure in step.failures:
            if sink := self._sinks.pop(failure.number, None):
                sink.fail(_error_of(failure))
        for number in step.gone:
            self._sinks.pop(number, None)

    async def _finish(self) -> None:
        code = await _end(self._process, END_SECONDS)
        self.is_alive = False
        self.stats = replace(self.stats, num_running=0, num_waiting=0, num_cached_tokens=0)
        if self._closing is not None:
            return
        logger.error("the engine of %s (process %d) ended: %s", self.name, self.pid, _how(code))
        self._fail_all(
            FailedError(
                f"the engine of {self.name!r} ended while it answered ({_how(code)}); ask again: "
                "it is started anew"
            )
        )
        self.on_death(self)

    def _fail_all(self, error: NanochatError) -> None:
        sinks, self._sinks = list(self._sinks.values()), {}
        for sink in sinks:
            # Each is raised on its own, and remembers where.
            sink.fail(copy(error))


async def _first_report(process: asyncio.subprocess.Process, name: str) -> Ready:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        code = await process.wait()
        raise FailedError(
            f"the engine of {name!r} ended before it was ready ({_how(code)}); the server's log "
            "may say why"
        )
    report = decode_report(line)
    if isinstance(report, Refused):
        kind = getattr(errors, report.kind, FailedError)
        raise kind(report.message)
    assert isinstance(report, Ready), "the first report says whether the model is there"
    return report


def _error_of(failure: Failure) -> NanochatError:
    return (ConfigError if failure.is_of_request else FailedError)(failure.message)


async def _end(process: asyncio.subprocess.Process, grace_seconds: float) -> int:
    """Close the commands of a process, wait for its end, kill it when it takes too long."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        return await asyncio.wait_for(process.wait(), grace_seconds)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        # One that hangs in the kernel cannot be helped.
        with suppress(TimeoutError):
            return await asyncio.wait_for(process.wait(), END_SECONDS)
        return -signal.SIGKILL


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
