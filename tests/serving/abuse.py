"""Clients that no server deserves: thousands at once, half requests, bodies without end."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import openai
import psutil
from serving_tools import Running
from test_serving_server import ask, queue_of, wait_until

from nanochat_core.serving.connections import raise_file_limit

PATH = "/v1/chat/completions"
FLOOD_SECONDS = 120.0


@dataclass(frozen=True)
class Told:
    """What a server answered, and how long that took; status 0 when it answered nothing."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def code(self) -> str | None:
        """The code of an error."""
        return json.loads(self.body)["error"]["code"]


def head_of(address: tuple[str, int], *lines: str, method: str = "POST", path: str = PATH) -> bytes:
    """Request line and headers, without the empty line."""
    host, port = address
    first = (f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", "Content-Type: application/json")
    return "".join(f"{line}\r\n" for line in (*first, *lines)).encode()


def whole(address: tuple[str, int], body: dict[str, Any]) -> bytes:
    """A request that is well."""
    content = json.dumps(body).encode()
    return head_of(address, f"Content-Length: {len(content)}", "Connection: close") + (
        b"\r\n" + content
    )


class Teller(asyncio.Protocol):
    """Sends some bytes, and takes all that comes until the server closes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.begin = data, time.monotonic()
        self.answer = bytearray()
        self.told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.data)

    def data_received(self, data: bytes) -> None:
        self.answer += data

    def connection_lost(self, _error: Exception | None) -> None:
        self.told.set_result(parsed(bytes(self.answer), time.monotonic() - self.begin))


async def tell(address: tuple[str, int], data: bytes) -> Told:
    """Send these bytes and read all that comes until the server closes."""
    loop = asyncio.get_running_loop()
    _, teller = await loop.create_connection(lambda: Teller(data), *address)
    return await teller.told


def parsed(answer: bytes, seconds: float) -> Told:
    """An answer as it came over the wire."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (ln.partition(":") for ln in lines)
    }
    return Told(int(first.split()[1]) if first else 0, headers, body, seconds)


def flood(address: tuple[str, int], bodies: Sequence[dict[str, Any]]) -> list[Told]:
    """So many requests at once, each over a connection of its own, all open before one is read."""
    assert raise_file_limit() > len(bodies) + 200, "this system allows too few open files"

    async def run() -> list[Told]:
        async with asyncio.timeout(FLOOD_SECONDS):
            return await asyncio.gather(*(tell(address, whole(address, body)) for body in bodies))

    return asyncio.run(run())


def statuses(answers: Sequence[Told]) -> Counter[int]:
    """How often each status came."""
    return Counter(answer.status for answer in answers)


class Held(contextlib.ExitStack):
    """Connections that have sent a part of something, and now wait until the block ends."""

    def __init__(self, address: tuple[str, int], data: bytes, number: int) -> None:
        super().__init__()
        raise_file_limit()
        self.sockets = [socket.create_connection(address, timeout=30) for _ in range(number)]
        for opened in self.sockets:
            self.callback(opened.close)
            opened.sendall(data)
            opened.setblocking(False)

    def num_open(self) -> int:
        """How many the server has not closed."""
        return sum(map(_is_open, self.sockets))


def _is_open(opened: socket.socket) -> bool:
    try:
        while True:
            if not opened.recv(65536):
                return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def told(server: Running, data: bytes) -> Told:
    """What one client is told."""
    return asyncio.run(tell(server.host_and_port, data))


class Listener(threading.Thread):
    """A client that behaves: reads a stream while the others do not."""

    def __init__(self, client: openai.OpenAI, num_tokens: int) -> None:
        super().__init__()
        self.client, self.num_tokens = client, num_tokens
        self.times: list[float] = []
        self.text, self.reason = "", ""
        self.start()
        wait_until(lambda: len(self.times) > 2)

    def run(self) -> None:
        """Read."""
        with ask(self.client, max_tokens=self.num_tokens, stream=True) as stream:
            for chunk in stream:
                self.times.append(time.monotonic())
                self.text += chunk.choices[0].delta.content or ""
                self.reason = chunk.choices[0].finish_reason or ""

    def check(self, *, longest_pause: float) -> None:
        """Everything came, and never late."""
        self.join(120)
        assert (len(self.text), self.reason) == (self.num_tokens, "length")
        assert max(b - a for a, b in pairwise(self.times)) < longest_pause


def memory_of(server: Running) -> int:
    """Of the process that listens, in bytes."""
    return psutil.Process(server.process.pid).memory_info().rss


def assert_well(server: Running, client: openai.OpenAI) -> None:
    """Nothing is left of what came before, and nothing was worth a line in the log."""
    wait_until(lambda: queue_of(server)["running"] == queue_of(server)["waiting"] == 0)
    assert ask(client, max_tokens=3).choices[0].message.content == "hah"
    assert server.lines.empty(), server.lines.get()
