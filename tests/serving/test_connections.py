"""Both of uvicorn's protocols keep the limits: the fast one, and that which is there everywhere."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from abuse import Told, head_of, tell, whole
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from nanochat_core.serving.connections import (
    ConnectionLimits,
    bind,
    http_protocol,
    sweep_forever,
    watched,
)

pytestmark = pytest.mark.e2e

LIMITS = ConnectionLimits(
    header_seconds=0.3, linger_seconds=0.2, sweep_seconds=0.05, idle_seconds=1
)
ADDRESS = ("127.0.0.1", 0)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """How long the body was."""
    num_bytes, message = 0, await receive()
    while message["type"] == "http.request":
        num_bytes += len(message["body"])
        if not message["more_body"]:
            break
        message = await receive()
    await JSONResponse({"bytes": num_bytes})(scope, receive, send)


@pytest.fixture(params=[http_protocol(), H11Protocol], ids=lambda base: base.__name__)
def base(request: pytest.FixtureRequest) -> Any:
    return request.param


def answers(base: Any, *data: bytes, limits: ConnectionLimits = LIMITS) -> Sequence[Told]:
    """What a server says to each of these, which are sent at once."""

    async def run() -> Sequence[Told]:
        state, loop = ServerState(), asyncio.get_running_loop()
        config = Config(echo, http=watched(base, limits), lifespan="off", log_config=None)
        config.load()

        def connection() -> Any:
            return config.http_protocol_class(config=config, server_state=state, app_state={})  # type: ignore[call-arg]

        with bind(*ADDRESS) as bound:
            server = await loop.create_server(connection, sock=bound)
            sweeping = asyncio.create_task(sweep_forever(state.connections, limits))
            told = await asyncio.gather(*(tell(bound.getsockname(), each) for each in data))
            sweeping.cancel()
            server.close()
        assert not state.connections
        return told

    return asyncio.run(run())


def codes(told: Sequence[Told]) -> list[tuple[int, str | None]]:
    return [(each.status, each.code if each.status >= 400 else None) for each in told]


def test_a_request_is_answered_and_half_of_one_is_not_waited_for(base: Any) -> None:
    good, half = whole(ADDRESS, {"a": 1}), head_of(ADDRESS)
    told = answers(base, good, half, b"", good)
    assert codes(told) == [(200, None), (408, "request_timeout"), (0, None), (200, None)]
    assert all(each.seconds < 5 for each in told)


def test_what_is_no_http_is_told_so(base: Any) -> None:
    [told] = answers(base, b"\x16\x03\x01 what is this\r\n\r\n")
    assert codes([told]) == [(400, told.code)]
    assert told.headers["connection"] == "close"


def test_headers_have_an_end(base: Any) -> None:
    long = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 400_000
    [told] = answers(base, long)
    # h11 has a limit of its own, and calls it no HTTP.
    assert told.status in (400, 431)


def test_one_connection_too_many_is_told_when_to_come_back(base: Any) -> None:
    limits = LIMITS.model_copy(update={"max_connections": 2})
    good = whole(ADDRESS, {"a": 1})
    told = answers(base, b"", b"", good, limits=limits)
    assert codes(told)[2] == (429, "server_busy")
    assert int(told[2].headers["retry-after"]) >= 1


def test_requests_one_after_the_other_keep_their_connection(base: Any) -> None:
    big = whole(ADDRESS, {"a": "x" * 100_000}).replace(b"Connection: close\r\n", b"")
    [told] = answers(base, big * 3 + whole(ADDRESS, {"a": 1}))
    assert told.body.count(b'"bytes"') == 4
