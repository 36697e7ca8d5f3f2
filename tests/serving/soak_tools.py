"""A crowd for a server: clients that read, read slowly, stop to read, or die in the middle."""

import asyncio
import json
import random
import socket
import statistics
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from nanochat_core.bench.serve_client import Connection, Response, Target, fetch
from nanochat_core.bench.serve_load import PATH, Sample, Window, sample_of
from nanochat_core.bench.serve_report import read_metrics

MANNERS = ("reads",) * 6 + ("slowly", "stops", "dies", "resets")
"""What every ten clients are like."""
TEXTS = ("Hello.", "Who are you?", "What is 6*7?", "Tell me a story, please. " * 8)
BUSY_PAUSE_SECONDS = 0.25
"""Less than what Retry-After says: more of a crowd before the door."""
SMALL_BUFFER = 4096
EVERY_MOMENT = Window(begin=0.0)


@dataclass
class Seen:
    """What became of the requests of a crowd."""

    num_answered: int = 0
    num_tokens: int = 0
    num_busy: int = 0
    num_left: int = 0
    """Requests whose client went away before the end."""
    problems: list[str] = field(default_factory=list)

    def take(self, response: Response, sample: Sample) -> bool:
        """Count an answer; whether it was a full queue, which has to say when to come back."""
        if response.status == 429:
            self.num_busy += 1
            is_said = response.headers.get("retry-after", "").isdecimal()
            if not is_said or json.loads(response.body)["error"]["code"] != "server_busy":
                self.problems.append(f"429 without its reason: {response.body!r}")
        elif sample.problem:
            self.problems.append(sample.problem)
        else:
            self.num_answered += 1
            self.num_tokens += sample.reply_tokens
        return response.status == 429


def question(draw: random.Random, max_tokens: int) -> dict[str, Any]:
    """A request for a stream."""
    return {
        "messages": [{"role": "user", "content": draw.choice(TEXTS)}],
        "max_tokens": max_tokens,
        "temperature": draw.choice([0.0, 0.6, 1.0]),
        "seed": draw.randrange(1 << 30),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def connect(target: Target, buffer_bytes: int | None = None) -> Connection:
    """A connection, with a small buffer for a client that is to feel that it reads slowly."""
    opened = socket.socket()
    opened.setblocking(False)
    if buffer_bytes is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(opened, (target.host, target.port))
    _, connection = await loop.create_connection(Connection, sock=opened)
    return connection


def reset(connection: Connection) -> None:
    """End a connection as a machine does that loses its power supply and comes back."""
    opened = connection.transport.get_extra_info("socket")
    if opened is not None and connection.is_open:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.abort()


class Visitor:
    """One client of a crowd, which asks again and again."""

    def __init__(self, target: Target, number: int, seen: Seen) -> None:
        self.manner = MANNERS[number % len(MANNERS)]
        self._target, self._seen = target, seen
        self._draw = random.Random(number)

    async def visit(self, until: float, max_tokens: int) -> None:
        """Ask until that moment, and take the last answer."""
        connection: Connection | None = None
        buffer_bytes = SMALL_BUFFER if self.manner in ("slowly", "stops") else None
        while time.monotonic() < until:
            try:
                if connection is None or not connection.is_open:
                    connection = await connect(self._target, buffer_bytes)
                await self._ask(connection, self._draw.randint(1, max_tokens))
            except (OSError, ValueError, KeyError) as error:
                self._seen.problems.append(f"{self.manner}: {error!r}")
                await asyncio.sleep(BUSY_PAUSE_SECONDS)
        if connection is not None:
            connection.abort()

    async def _ask(self, connection: Connection, max_tokens: int) -> None:
        sent = time.monotonic()
        request = self._target.request("POST", PATH, question(self._draw, max_tokens))
        asking = asyncio.ensure_future(connection.ask(request))
        if self.manner == "slowly":
            await _read_slowly(connection, asking)
        elif self.manner != "reads":
            if self.manner == "stops":
                await asyncio.sleep(0)
                connection.transport.pause_reading()
            elif self.manner == "dies":
                await _first_text(connection, asking)
            await asyncio.wait({asking}, timeout=self._draw.uniform(0.0, 0.8))
            if not asking.done():
                self._leave(connection)
                with suppress(ConnectionError):
                    await asking
                return
        response = await asking
        if self._seen.take(response, sample_of(response, sent, EVERY_MOMENT)):
            await asyncio.sleep(BUSY_PAUSE_SECONDS)

    def _leave(self, connection: Connection) -> None:
        self._seen.num_left += 1
        if self.manner == "resets":
            reset(connection)
        else:
            connection.abort()


async def _read_slowly(connection: Connection, asking: "asyncio.Future[Response]") -> None:
    while not asking.done():
        if connection.is_open:
            connection.transport.pause_reading()
            await asyncio.sleep(0.2)
        if connection.is_open:
            connection.transport.resume_reading()
        await asyncio.wait({asking}, timeout=0.01)


async def _first_text(connection: Connection, asking: "asyncio.Future[Response]") -> None:
    while not asking.done() and not connection.response.parts:
        await asyncio.wait({asking}, timeout=0.01)


async def crowd(target: Target, num_clients: int, seconds: float, max_tokens: int) -> Seen:
    """So many clients of all manners for so long."""
    seen, until = Seen(), time.monotonic() + seconds
    visitors = [Visitor(target, number, seen) for number in range(num_clients)]
    await asyncio.gather(*(visitor.visit(until, max_tokens) for visitor in visitors))
    return seen


@dataclass
class Memory:
    """Bytes of each process of a server over time, the first process first."""

    pid: int
    sizes: dict[int, list[int]] = field(default_factory=dict)

    async def watch(self, work: Awaitable[Seen], period_seconds: float) -> Seen:
        """Look at the sizes until work is done; returns what it does."""
        working = asyncio.ensure_future(work)
        while not working.done():
            self._look()
            await asyncio.wait({working}, timeout=period_seconds)
        return working.result()

    def _look(self) -> None:
        for process in family(self.pid):
            self.sizes.setdefault(process.pid, []).append(process.memory_info().rss)

    def growth(self) -> dict[int, tuple[float, float]]:
        """Of each process, the median bytes of the second quarter and of the last one."""
        return {
            pid: (
                statistics.median(sizes[len(sizes) // 4 : len(sizes) // 2]),
                statistics.median(sizes[-(len(sizes) // 4) :]),
            )
            for pid, sizes in self.sizes.items()
        }


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started."""
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


async def numbers(target: Target) -> dict[str, float]:
    """The server's metrics, without the prefix of their names."""
    response = await fetch(target, "GET", "/metrics", None)
    assert response.status == 200
    found = read_metrics(response.body.decode())
    return {name.removeprefix("nanochat_"): value for name, value in found.items()}


async def until_true(
    target: Target, condition: Callable[[dict[str, float]], bool], seconds: float
) -> dict[str, float]:
    """The metrics for which a condition holds, which must come in time."""
    deadline = time.monotonic() + seconds
    while not condition(found := await numbers(target)):
        assert time.monotonic() < deadline, f"waited in vain: {found}"
        await asyncio.sleep(0.005)
    return found


def num_open(found: dict[str, float]) -> float:
    """Replies that have a row or wait for one."""
    return found["requests_running"] + found["requests_waiting"]


class Streams:
    """Replies under way, whose first text has come."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.tasks: list[asyncio.Future[Response]] = []

    @classmethod
    async def start(cls, target: Target, max_tokens: Sequence[int]) -> "Streams":
        """As many replies as there are numbers of tokens."""
        streams, draw = cls(), random.Random(0)
        for number in max_tokens:
            connection = await connect(target)
            request = target.request("POST", PATH, question(draw, number))
            streams.connections.append(connection)
            streams.tasks.append(asyncio.ensure_future(connection.ask(request)))
        return streams

    async def flow(self) -> None:
        """Wait until each has some text, or has ended."""
        for connection, task in zip(self.connections, self.tasks, strict=True):
            await _first_text(connection, task)

    async def end(self) -> list[Sample]:
        """Wait for the ends of all."""
        responses = await asyncio.gather(*self.tasks)
        return [sample_of(response, 0.0, EVERY_MOMENT) for response in responses]

    async def die(self, count: int) -> None:
        """Break off so many of them, at once."""
        dying, self.connections = self.connections[:count], self.connections[count:]
        tasks, self.tasks = self.tasks[:count], self.tasks[count:]
        for number, connection in enumerate(dying):
            if number % 2:
                reset(connection)
            else:
                connection.abort()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(ended, ConnectionError)
