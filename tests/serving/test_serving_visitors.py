"""Clients that leave or do not read, and an engine that dies: the API in this process."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving_tools import chunks_of, in_process, wait_until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
NUM_ROWS, MAX_WAITING = 4, 3
STEPS = ("h", "a", "h")
"""After "h": laughter without end."""
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with in_process(*STEPS, num_rows=NUM_ROWS, max_waiting=MAX_WAITING) as opened:
        yield opened


class Visitor:
    """A client by hand: what it sends, when it leaves, how it takes what it is sent."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.path, self.body = path, json.dumps(body).encode()
        self.has_left, self.may_take = asyncio.Event(), asyncio.Event()
        self.may_take.set()
        self.parts: list[bytes] = []
        self.status = 0
        self._has_asked = False

    async def visit(self, app: FastAPI) -> None:
        """Ask, and take the answer."""
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        length = (b"content-length", str(len(self.body)).encode())
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [*headers, length],
        }
        await app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if not self._has_asked:
            self._has_asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self.may_take.wait()
        self.status = message.get("status", self.status)
        self.parts.append(message.get("body", b""))


def open_replies(app: FastAPI) -> int:
    return sum(model.num_open for model in app.state.served.pool.loaded())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not condition():
            await asyncio.sleep(0.005)


def in_loop(client: TestClient, work: Callable[[FastAPI], Any]) -> Any:
    """Run what asks the application by hand where it lives."""
    assert client.portal is not None
    assert isinstance(client.app, FastAPI)
    return client.portal.call(work, client.app)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3, NUM_ROWS + MAX_WAITING])
def test_a_client_that_leaves_frees_all_of_its_rows(
    client: TestClient, stream: bool, n: int
) -> None:
    async def leave(app: FastAPI) -> float:
        body = {"prompt": "h", "max_tokens": 630, "n": n, "stream": stream, **GREEDY}
        visitor = Visitor(TEXT, body)
        visit = asyncio.create_task(visitor.visit(app))
        await until(lambda: open_replies(app) == n)
        if stream:
            await until(lambda: len(visitor.parts) > 3)
        begin = time.monotonic()
        visitor.has_left.set()
        await visit
        await until(lambda: open_replies(app) == 0)
        assert visitor.status == (200 if stream else 499)
        assert b"[DONE]" not in b"".join(visitor.parts)
        return time.monotonic() - begin

    # All of a reply takes a hundred times as long as one step does.
    assert in_loop(client, leave) < 0.5


def test_a_client_that_does_not_read_holds_up_nobody_and_gets_all_in_a_few_large_parts(
    client: TestClient,
) -> None:
    async def stall(app: FastAPI) -> Visitor:
        visitor = Visitor(TEXT, {"prompt": "h", "max_tokens": 400, "stream": True, **GREEDY})
        visitor.may_take.clear()
        visit = asyncio.create_task(visitor.visit(app))
        await until(lambda: open_replies(app) == 1)
        await until(lambda: open_replies(app) == 0)
        visitor.may_take.set()
        await visit
        return visitor

    visitor = in_loop(client, stall)
    chunks = chunks_of(b"".join(visitor.parts).decode())
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "ah" * 200
    assert len(chunks) < 50


@pytest.mark.e2e
def test_an_engine_that_dies_ends_a_stream_with_an_error_and_no_end_mark(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def kill(app: FastAPI) -> Visitor:
        visitor = Visitor(TEXT, {"prompt": "h", "max_tokens": 630, "n": 2, "stream": True})
        visit = asyncio.create_task(visitor.visit(app))
        await until(lambda: len(visitor.parts) > 3)
        (model,) = app.state.served.pool.loaded()
        os.kill(model.links[0].pid, signal.SIGKILL)
        await visit
        return visitor

    visitor = in_loop(client, kill)
    *_, last, rest = b"".join(visitor.parts).decode().split("\n\n")
    assert rest == ""
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
    # It comes back by itself.
    wait_until(lambda: client.post(TEXT, json={"prompt": "h", "max_tokens": 1}).is_success, 60)
