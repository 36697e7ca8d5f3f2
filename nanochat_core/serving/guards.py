"""What every request passes before it reaches a route: who asks, and how much it sends."""

import ipaddress
from typing import Literal
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat_core.serving.problems import ForbiddenError, TooLargeError, answer_to


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guards:
    """Refuses foreign sites and long bodies, and marks every answer as ours alone to show.

    A server on loopback is private only as long as no web page can ask in its reader's name: a
    page whose host name was pointed to 127.0.0.1 (DNS rebinding) sends that name as `Host`, and
    any other page its own `Origin`.
    """

    def __init__(self, app: ASGIApp, *, is_private: bool, max_body_bytes: int) -> None:
        self.app, self.is_private, self.max_body_bytes = app, is_private, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        marked = _with_headers(send)
        try:
            if self.is_private:
                check_same_machine(headers.get("host", ""), headers.get("origin"))
            self._check_length(headers.get("content-length", "0"))
        except (ForbiddenError, TooLargeError) as error:
            answer = answer_to(error)
            # The body is not read, so the connection is of no further use.
            refusal = JSONResponse(answer.body, answer.status, {"Connection": "close"})
            await refusal(scope, receive, marked)
            return
        await self.app(scope, self._limited(receive), marked)

    def _check_length(self, content_length: str) -> None:
        if content_length.isdecimal() and int(content_length) > self.max_body_bytes:
            raise TooLargeError(_too_large(f"{int(content_length):,}", self.max_body_bytes))

    def _limited(self, receive: Receive) -> Receive:
        """Count the bytes of a body that does not say how long it is."""
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_body_bytes:
                # The one kind of error that the framework passes on from here.
                raise HTTPException(413, _too_large("more", self.max_body_bytes))
            return message

        return limited


def check_same_machine(host: str, origin: str | None) -> None:
    """Raise ForbiddenError unless a request was made on this machine, by no other site."""
    if not is_loopback(_part(f"//{host}", "hostname")):
        raise ForbiddenError(
            f"the request is for the host {host!r}, but this server is on loopback alone: use "
            "localhost or 127.0.0.1, or start it with --host"
        )
    if origin is not None and _part(origin, "netloc") != host:
        raise ForbiddenError(
            f"the request comes from a page of {origin!r}; only this server's own page may ask it"
        )


def _part(url: str, name: Literal["hostname", "netloc"]) -> str:
    """A part of what a client calls a URL; empty where it is none."""
    try:
        part: str | None = getattr(urlsplit(url), name)
    except ValueError:  # brackets that do not match, as in "[::1"
        return ""
    return part or ""


def _too_large(given: str, limit: int) -> str:
    return f"the body has {given} bytes, the limit is {limit:,}; send fewer messages"


def _with_headers(send: Send) -> Send:
    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return marked
