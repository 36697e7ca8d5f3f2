"""What every request passes before it reaches a route: who asks, how much, and how fast."""

import asyncio
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat_core.errors import NanochatError
from nanochat_core.serving.connections import ConnectionLimits
from nanochat_core.serving.metrics import Metrics
from nanochat_core.serving.problems import (
    BusyError,
    ForbiddenError,
    SlowClientError,
    TooLargeError,
    UnauthorizedError,
    answer_to,
)

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/openapi.json", "/favicon.ico"})
"""What needs no key: the page that asks for it, and what says whether the server is well."""
API = "/v1/"
ANY_ORIGIN = "*"
PREFLIGHT_SECONDS = 600
EXPOSED = "Retry-After"
HEADER_NAMES = re.compile(r"[A-Za-z0-9, -]{1,2000}")


@dataclass(frozen=True)
class Rules:
    """Who may ask, and how long a body may be. `is_private`: only this machine is to ask."""

    is_private: bool
    max_body_bytes: int
    api_key: str | None = None
    origins: tuple[str, ...] = ()


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guards:
    """Refuses foreign sites, wrong keys, and bodies too long, too slow or too many.

    A server on loopback is private only as long as no web page can ask in its reader's name: a
    page whose host name was pointed to 127.0.0.1 (DNS rebinding) sends that name as `Host`, and
    any other page its own `Origin`. A body is read here, whole, so that no route waits for one.
    """

    def __init__(
        self, app: ASGIApp, rules: Rules, limits: ConnectionLimits, metrics: Metrics
    ) -> None:
        self.app, self.rules, self.limits, self.metrics = app, rules, limits, metrics
        self._num_requests = self._num_buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        is_own = origin is None or _part(origin, "netloc") == headers.get("host", "no host")
        foreign = None if is_own else origin
        marked = self._marked(send, scope, foreign)
        try:
            self._check_origin(headers, foreign)
            if foreign is not None and scope["method"] == "OPTIONS":
                await _preflight(headers)(scope, receive, marked)
                return
            self._check_key(scope["path"], headers)
            self._check_length(headers)
        except NanochatError as error:
            await self._refuse(error, scope, receive, marked)
            return
        if scope["path"].startswith(API) and scope["method"] == "POST":
            await self._counted(scope, receive, marked)
        else:
            await self._with_body(scope, receive, marked)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer if few enough requests are under way; the queue has a limit of its own."""
        if self._num_requests >= self.limits.max_requests:
            error = BusyError(f"{self._num_requests:,} requests are under way; try again later")
            await self._refuse(error, scope, receive, send)
            return
        self._num_requests += 1
        try:
            await self._with_body(scope, receive, send)
        finally:
            self._num_requests -= 1

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read_body(receive)
        except NanochatError as error:
            await self._refuse(error, scope, receive, send)
            return
        if body is not None:
            await self.app(scope, _replayed(body, receive), send)

    async def _read_body(self, receive: Receive) -> bytes | None:
        """The whole body; None when the client leaves in the middle of it."""
        begin, parts, num_bytes = time.monotonic(), list[bytes](), 0
        try:
            while True:
                seconds = self.limits.body_seconds + num_bytes / self.limits.body_bytes_per_second
                message = await _within(begin + seconds - time.monotonic(), receive)
                if message["type"] == "http.disconnect":
                    return None
                part: bytes = message.get("body", b"")
                parts.append(part)
                num_bytes += len(part)
                self._num_buffered += len(part)
                self._check_size(num_bytes)
                if not message.get("more_body", False):
                    return b"".join(parts)
        finally:
            self._num_buffered -= num_bytes

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.rules.max_body_bytes:
            raise TooLargeError(_too_large("more", self.rules.max_body_bytes))
        if self._num_buffered > self.limits.max_buffered_bytes:
            raise BusyError("too many long requests arrive at once; try again later")

    def _check_length(self, headers: Headers) -> None:
        given = headers.get("content-length", "0")
        if given.isdecimal() and int(given) > self.rules.max_body_bytes:
            raise TooLargeError(_too_large(f"{int(given):,}", self.rules.max_body_bytes))

    def _check_origin(self, headers: Headers, foreign: str | None) -> None:
        if self.rules.is_private:
            check_same_machine(headers.get("host", ""))
        if foreign is not None and not self._is_allowed(foreign):
            raise ForbiddenError(
                f"the request comes from a page of {foreign[:200]!r}; only this server's own page "
                "may ask it, and those of the sites that it was given as --cors-origin"
            )

    def _is_allowed(self, origin: str) -> bool:
        return ANY_ORIGIN in self.rules.origins or origin in self.rules.origins

    def _check_key(self, path: str, headers: Headers) -> None:
        if self.rules.api_key is None or path in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not _is_same(given.strip(), self.rules.api_key):
            raise UnauthorizedError(
                "this server asks for a key: send its NANOCHAT_API_KEY as "
                "`Authorization: Bearer KEY`",
                code="invalid_api_key",
            )

    async def _refuse(
        self, error: NanochatError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        answer = answer_to(error)
        self.metrics.refused(answer.code)
        # What is left of the body is not read as a request, so the connection ends.
        headers = {**answer.headers, "Connection": "close"}
        response = JSONResponse(answer.body, answer.status, headers)
        await _send_and_linger(response, scope, receive, send, self.limits.linger_seconds)

    def _marked(self, send: Send, scope: Scope, foreign: str | None) -> Send:
        """Mark every answer as ours alone to show, or as that of an allowed site, and count it."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers.setdefault("Cache-Control", "no-store")
                if self.rules.origins:
                    headers.add_vary_header("Origin")
                if foreign is not None and self._is_allowed(foreign):
                    headers["Access-Control-Allow-Origin"] = foreign
                    headers["Access-Control-Expose-Headers"] = EXPOSED
                self.metrics.answered(scope["path"], message["status"])
            await send(message)

        return marked


def check_same_machine(host: str) -> None:
    """Raise ForbiddenError unless a request was meant for this machine by that name."""
    if not is_loopback(_part(f"//{host}", "hostname")):
        raise ForbiddenError(
            f"the request is for the host {host[:200]!r}, but this server is on loopback alone: "
            "use localhost or 127.0.0.1, or start it with --host"
        )


def _part(url: str, name: Literal["hostname", "netloc"]) -> str:
    """A part of what a client calls a URL; empty where it is none."""
    try:
        part: str | None = getattr(urlsplit(url), name)
    except ValueError:  # brackets that do not match, as in "[::1"
        return ""
    return part or ""


def _is_same(given: str, key: str) -> bool:
    """Compare in a time that tells neither the key nor its length."""
    digests = [hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (given, key)]
    return hmac.compare_digest(*digests)


def _preflight(headers: Headers) -> Response:
    """What a browser asks before it lets a page of an allowed site ask."""
    asked = headers.get("access-control-request-headers", "")
    answers = {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": asked if HEADER_NAMES.fullmatch(asked) else "",
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
    }
    if headers.get("access-control-request-private-network") == "true":
        answers["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=answers)


def _too_large(given: str, limit: int) -> str:
    return f"the body has {given} bytes, the limit is {limit:,}; send fewer messages"


async def _within(seconds: float, receive: Receive) -> Message:
    try:
        async with asyncio.timeout(seconds):
            return await receive()
    except TimeoutError as error:
        raise SlowClientError("the body did not arrive in time") from error


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, and then what the connection says."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


async def _send_and_linger(
    response: JSONResponse, scope: Scope, receive: Receive, send: Send, seconds: float
) -> None:
    """Send an answer, and read on for a moment before the connection ends.

    To close it on what a client still sends would reset it, and the answer be lost on its way.
    """

    async def lingering(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        await _read_away(receive, seconds)
        await send({"type": "http.response.body", "body": b""})

    await response(scope, receive, lingering)


async def _read_away(receive: Callable[[], Awaitable[Message]], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        return
