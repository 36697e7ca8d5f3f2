"""HTTP/1.1 by hand, light enough to share a machine with the server that is measured.

What arrives is kept with the time at which it came, and read as events when the answer is whole.
"""

import asyncio
import ipaddress
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from nanochat_core.errors import ConfigError

DONE = b"[DONE]"
"""What the last event of a stream holds in the OpenAI API."""


@dataclass(frozen=True)
class Target:
    """A server: where it is, and the key that it wants."""

    host: str
    port: int
    prefix: str = ""
    is_tls: bool = False
    key: str = field(default="", repr=False)

    @classmethod
    def of_url(cls, url: str, key: str = "") -> "Target":
        """The server of a URL, with or without /v1; ConfigError for one that is none."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"--url {url!r} is no URL ({error}); {_URL_REMEDY}") from error
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigError(f"--url {url!r} is no URL of a server; {_URL_REMEDY}")
        is_tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(host, port or (443 if is_tls else 80), prefix, is_tls, key)

    @property
    def is_loopback(self) -> bool:
        """Whether the server runs on this machine, by its name alone."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """A request as bytes."""
        content = b"" if body is None else json.dumps(body).encode()
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"Host: {host}:{self.port}"]
        lines += [f"Authorization: Bearer {self.key}"] if self.key else []
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        return "\r\n".join([*lines, "", ""]).encode() + content


_URL_REMEDY = "give one as http://127.0.0.1:8000"


class Response:
    """An answer that is fed with what arrives until it is whole.

    `parts` holds the body without its framing, each part with the time at which it came.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parts: list[tuple[float, bytes]] = []
        self.is_whole = False
        self._rest = b""
        self._missing: int | None = None
        """Bytes of the body, or of the chunk and its end of line, that are still to come."""

    @property
    def body(self) -> bytes:
        """The body."""
        return b"".join(data for _, data in self.parts)

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks that say their length."""
        return self.headers.get("transfer-encoding", "").lower() == "chunked"

    def feed(self, data: bytes, when: float) -> None:
        """Take in what has arrived; ValueError for what is no HTTP/1.1."""
        self._rest += data
        if not self.status and not self._take_head():
            return
        if self.is_chunked:
            while not self.is_whole and self._take_chunk(when):
                pass
        elif self._rest:
            self.parts.append((when, self._rest))
            self._missing = None if self._missing is None else self._missing - len(self._rest)
            self._rest = b""
        self.is_whole = self.is_whole or self._missing == 0

    def end(self) -> bool:
        """The connection is closed: whether that was the end of the answer."""
        self.is_whole = bool(self.status) and not self.is_chunked and self._missing is None
        return self.is_whole

    def _take_head(self) -> bool:
        head, found, rest = self._rest.partition(b"\r\n\r\n")
        if not found:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(f"an answer starts with {first[:40]!r}, not with HTTP/1.1")
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self.status, self._rest = int(status), rest
        length = self.headers.get("content-length")
        self._missing = None if self.is_chunked or length is None else int(length)
        return True

    def _take_chunk(self, when: float) -> bool:
        """Take one chunk that has come as a whole."""
        size_line, found, rest = self._rest.partition(b"\r\n")
        if not found:
            return False
        size = int(size_line.split(b";")[0], 16)
        if len(rest) < size + 2:
            return False
        if size:
            self.parts.append((when, rest[:size]))
        self._rest, self.is_whole = rest[size + 2 :], size == 0
        return True


def events(response: Response) -> Iterator[tuple[float, dict[str, Any]]]:
    """The events of a stream before its `[DONE]`, each with the time at which it was whole."""
    rest = b""
    for when, data in response.parts:
        *texts, rest = (rest + data).split(b"\n\n")
        for text in texts:
            content = text.removeprefix(b"data: ")
            if content != DONE and content != text:
                yield when, json.loads(content)


class Connection(asyncio.Protocol):
    """A connection to a server, for one request after the other."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.is_open = False
        self.response = Response()
        """The answer to the last request, as far as it has come."""
        self._done: asyncio.Future[Response] | None = None

    @classmethod
    async def to(cls, target: Target) -> "Connection":
        """Connect; OSError."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            cls, target.host, target.port, ssl=target.is_tls or None
        )
        return connection

    async def ask(self, request: bytes) -> Response:
        """Send a request and wait for its whole answer.

        Raises ConnectionError when the server breaks off, ValueError when it speaks no HTTP.
        """
        self.response = Response()
        self._done = asyncio.get_running_loop().create_future()
        if not self.is_open:
            raise ConnectionError("the connection is closed")
        self.transport.write(request)
        return await self._done

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport), "TCP and TLS are both"
        self.transport, self.is_open = transport, True

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._done is None or self._done.done():
            return
        try:
            self.response.feed(data, time.monotonic())
        except ValueError as error:
            self._done.set_exception(error)
            self.abort()
            return
        if self.response.is_whole:
            self._done.set_result(self.response)
            if self.response.headers.get("connection", "").lower() == "close":
                self.is_open = False
                self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        self.is_open = False
        if self._done is None or self._done.done():
            return
        if self.response.end():
            self._done.set_result(self.response)
        else:
            self._done.set_exception(
                ConnectionError(f"the server broke off in the middle of an answer ({error})")
            )


async def fetch(target: Target, method: str, path: str, body: dict[str, Any] | None) -> Response:
    """One request over a connection of its own."""
    connection = await Connection.to(target)
    try:
        return await connection.ask(target.request(method, path, body))
    finally:
        connection.abort()
