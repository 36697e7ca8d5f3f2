"""Connections under abuse: what uvicorn's HTTP protocols leave open has an end here.

A connection may hold its place only while something happens on it: its headers have a deadline and
a size, an answer that nobody takes is given up, and with more connections than there is room for,
the newest are told so at once. (Bodies are read by `guards`, with a deadline of their own.)
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Collection
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

from pydantic import Field
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanochat_core.config.base import Config
from nanochat_core.errors import ConfigError
from nanochat_core.serving.problems import (
    Answer,
    BusyError,
    RequestError,
    SlowClientError,
    TooLargeError,
    answer_to,
)

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    HttpProtocol: TypeAlias = type[H11Protocol] | type[HttpToolsProtocol]

FILES_KEPT_BACK = 256
"""Of the files a process may open: pipes to workers, the store, libraries."""
MOST_FILES = 1 << 16
"""No system that says "unlimited" means it; more connections than this need another server."""
BACKLOG = 4_096
"""Connections that wait to be accepted; the system cuts it to its own limit."""
SEND_BUFFER_BYTES, RECEIVE_BUFFER_BYTES = 128 << 10, 256 << 10
"""Of each connection; left alone, Linux lets one that nobody reads grow to 4 MB, and more."""
KEEP_ALIVE_PROBES = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
"""A client that vanished without a word (a lid closed, a network gone) is noticed in a minute."""


class ConnectionLimits(Config):
    """How long, how much and how many; times in seconds.

    Deadlines of headers and bodies are about those of Apache's mod_reqtimeout (20 s and 500
    bytes/s by default), a little stricter: no valid body here has more than a megabyte.
    """

    max_connections: int = Field(16_000, ge=1, description="open at once; more get a 429")
    max_requests: int = Field(1_024, ge=1, description="to the API at once; more get a 429")
    max_buffered_bytes: int = Field(64 << 20, ge=1, description="of bodies that still arrive")
    max_header_bytes: int = Field(32 << 10, ge=1, description="request line and headers")
    header_seconds: float = Field(15.0, gt=0, description="until headers are complete")
    crowded_header_seconds: float = Field(2.0, gt=0, description="the same, with few places left")
    body_seconds: float = Field(15.0, gt=0, description="until a body is complete, and one more")
    body_bytes_per_second: int = Field(2_048, ge=1, description="second for so many bytes")
    idle_seconds: int = Field(10, ge=1, description="between requests; httpx's clients wait 5")
    stuck_seconds: float = Field(60.0, gt=0, description="an answer waits to be taken")
    linger_seconds: float = Field(2.0, gt=0, description="a refused client may go on sending")
    sweep_seconds: float = Field(0.5, gt=0, description="between looks at all connections")


class WatchedConnection:
    """What both of uvicorn's protocols get; `watched` mixes it in."""

    limits: ClassVar[ConnectionLimits]

    if TYPE_CHECKING:
        connections: set[Any]
        transport: asyncio.Transport
        flow: Any
        cycle: Any
        loop: asyncio.AbstractEventLoop

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take a place, or none: then all that this client sends gets one answer."""
        cast(Any, super()).connection_made(transport)
        self._idle_since: float | None = self.loop.time()
        self._stuck_since: float | None = None
        self._refused_since: float | None = None
        self._num_discarded = self._num_unread = 0
        self._was_in_body = False
        self._seen_cycle: Any = None
        self._was_overdue = False
        self._is_extra = len(self.connections) > self.limits.max_connections
        if len(self.connections) > self.limits.max_connections + FILES_KEPT_BACK // 2:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Hand bytes to the parser, as long as they amount to something."""
        if self._is_extra and self._refused_since is None:
            self._refuse(answer_to(BusyError("too many connections are open; try again later")))
        if self._refused_since is not None:
            self._discard(data)
            return
        before = self.cycle
        cast(Any, super()).data_received(data)
        if not self.transport.is_closing() and self._refused_since is None:
            self._count_unread(len(data), is_new=self.cycle is not before)

    def send_400_response(self, _message: str) -> None:
        """Answer to what is no HTTP."""
        self._refuse(answer_to(RequestError("what was sent is no HTTP/1.1 request")))

    def shutdown(self) -> None:
        """Close when the answer that is under way is complete; what was refused has had its own."""
        if self._refused_since is None:
            cast(Any, super()).shutdown()
        else:
            self.transport.close()

    def sweep(self, now: float, *, is_crowded: bool) -> None:
        """End this connection if it only holds its place."""
        if self._is_stuck(now):
            self.transport.abort()
        elif self._refused_since is not None:
            if now - self._refused_since > self.limits.linger_seconds:
                self.transport.abort()
        else:
            # What arrived in time may wait to be read, as this loop may be late: it gets a turn.
            was_overdue = self._was_overdue
            self._was_overdue = self._is_overdue(now, is_crowded=is_crowded)
            if was_overdue and self._was_overdue:
                self._expire()

    def _is_stuck(self, now: float) -> bool:
        """Whether the client has stopped to take its answer, so that its buffers are full."""
        is_held = self.flow.write_paused or self.transport.is_closing()
        if not (is_held and self.transport.get_write_buffer_size()):
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = now
        return self._stuck_since is not None and now - self._stuck_since > self.limits.stuck_seconds

    def _is_overdue(self, now: float, *, is_crowded: bool) -> bool:
        """Whether headers are due; between two requests, uvicorn has a timer for silence."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._idle_since = None
        elif self._idle_since is None or cycle is not self._seen_cycle:
            self._idle_since = now
        self._seen_cycle = cycle
        limits = self.limits
        allowed = limits.crowded_header_seconds if is_crowded else limits.header_seconds
        return self._idle_since is not None and now - self._idle_since > allowed

    def _expire(self) -> None:
        if self._num_unread:
            self._refuse(answer_to(SlowClientError("the headers did not arrive in time")))
        else:
            # It never said a word, so there is nothing to answer.
            self.transport.close()

    def _count_unread(self, num_bytes: int, *, is_new: bool) -> None:
        """Bound what a parser collects: headers, and all that is not body in a chunked body."""
        is_in_body = self._is_in_body()
        # While reading is paused (a request waits for the one before it), nothing adds up.
        if is_new or is_in_body != self._was_in_body or self.flow.read_paused:
            self._num_unread, self._was_in_body = 0, is_in_body
            return
        self._num_unread += num_bytes
        if not is_in_body and self._num_unread > self.limits.max_header_bytes:
            limit = f"{self.limits.max_header_bytes:,}"
            error = TooLargeError(f"the headers exceed {limit} bytes", code="headers_too_large")
            answer = answer_to(error)
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._refuse(Answer(status, answer.body, answer.headers))
        elif is_in_body and self._num_unread > self.limits.max_buffered_bytes:
            # Chunks of a byte, or chunk extensions without end: no client that means well.
            self.transport.abort()

    def _is_in_body(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.more_body and not cycle.response_complete

    def _refuse(self, answer: Answer) -> None:
        """Answer before there is a request; what still comes is thrown away for a while.

        To close at once would reset the connection, and the answer be lost on its way.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            # Another answer is under way: a second would end up in the middle of it.
            self.transport.abort()
            return
        self._refused_since = self.loop.time()
        self.transport.write(raw_answer(answer))
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _discard(self, data: bytes) -> None:
        self._num_discarded += len(data)
        if self._num_discarded > self.limits.max_buffered_bytes:
            self.transport.abort()


def raw_answer(answer: Answer) -> bytes:
    """An error as bytes, where no application answers."""
    body = json.dumps(answer.body).encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "Cache-Control": "no-store",
        **answer.headers,
    }
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def http_protocol() -> "HttpProtocol":
    """The fastest of uvicorn's protocols that is there."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return H11Protocol
    return HttpToolsProtocol


def watched(base: "HttpProtocol", limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """A protocol of uvicorn whose connections keep these limits."""
    name = f"Watched{base.__name__}"
    return cast(type[asyncio.Protocol], type(name, (WatchedConnection, base), {"limits": limits}))


async def sweep_forever(connections: Collection[Any], limits: ConnectionLimits) -> None:
    """Look after all connections until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(limits.sweep_seconds)
        is_crowded = len(connections) > 0.9 * limits.max_connections
        for connection in list(connections):
            connection.sweep(loop.time(), is_crowded=is_crowded)


def raise_file_limit() -> int:
    """Let this process open as many files as the system allows; returns how many that is."""
    try:
        import resource
    except ImportError:  # Windows, where sockets are no files
        return MOST_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # macOS says unlimited and means less
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, MOST_FILES)


def within_files(limits: ConnectionLimits, num_files: int) -> ConnectionLimits:
    """Limits with no more connections than files can be opened for."""
    most = max(num_files - FILES_KEPT_BACK, 1)
    return limits.model_copy(update={"max_connections": min(limits.max_connections, most)})


def bind(host: str, port: int) -> socket.socket:
    """A socket at that address, before minutes go into a model that nobody could reach."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"host={host!r} is no address of this machine ({error}); give 127.0.0.1, or 0.0.0.0 "
            "for all"
        ) from error
    bound = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _set_up(bound)
        bound.bind(address[4])
        # Bound is not yet taken: only the second of two that listen gets an error.
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {host} port {port} ({error.strerror}); end what runs there, or give "
            "another --port (0 takes a free one)"
        ) from error
    return bound


def _set_up(bound: socket.socket) -> None:
    """Options that connections inherit on Linux; elsewhere they may do nothing."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE_PROBES:
        if hasattr(socket, name):
            bound.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def url_of(bound: socket.socket) -> str:
    """Where a browser on this machine finds a socket."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
