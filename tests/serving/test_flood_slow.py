"""Clients that hold their place and do nothing with it; those who behave notice nothing."""

import contextlib
import socket
import time
from collections.abc import Iterator

import openai
import psutil
import pytest
from abuse import PATH, Held, Listener, assert_well, head_of, memory_of, told, whole
from serving_tools import LAUGH, Running, request, save_folders, started
from test_serving_server import TOLD, ask, get, queue_of, send, wait_until

pytestmark = pytest.mark.e2e

SHORT = {
    "header_seconds": 2.0,
    "body_seconds": 1.5,
    "body_bytes_per_second": 50_000,
    "idle_seconds": 1,
    "stuck_seconds": 2.0,
    "linger_seconds": 1.0,
}
"""Deadlines that a test can wait for."""
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folders = save_folders(tmp_path_factory.mktemp("laugh"), *LAUGH, sequence_len=1000)
    options = ["--rows", "4", "--max-waiting", "8"]
    with started([*folders, *options], limits=SHORT) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_half_open_connections_end_at_the_deadline(server: Running, client: openai.OpenAI) -> None:
    listener = Listener(client, 2000)
    half = head_of(server.host_and_port)
    with Held(server.host_and_port, half, 200) as held, Held(server.host_and_port, b"", 50) as mute:
        assert ask(client, max_tokens=3).choices[0].message.content == "hah"
        wait_until(lambda: held.num_open() == mute.num_open() == 0, 15)
    listener.check(longest_pause=5.0)
    answer = told(server, half)
    assert (answer.status, answer.code) == (408, "request_timeout")
    assert 1.5 < answer.seconds < 8
    assert_well(server, client)


def test_a_header_byte_now_and_then_does_not_keep_a_connection(server: Running) -> None:
    with socket.create_connection(server.host_and_port, timeout=10) as opened:
        opened.sendall(head_of(server.host_and_port) + b"X-Slow: ")
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - begin < 15:
                opened.sendall(b"a")
                time.sleep(0.1)
        assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n", 400, "invalid_value"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "invalid_value"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 100_000, 431, "headers_too_large"),
    ],
)
def test_what_is_no_request_is_told_so(
    server: Running, data: bytes, status: int, code: str
) -> None:
    answer = told(server, data)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/json"


def test_a_body_that_never_ends_is_told_so(server: Running, client: openai.OpenAI) -> None:
    host = server.host_and_port
    answer = told(server, head_of(host, "Content-Length: 500") + b"\r\n{")
    assert (answer.status, answer.code) == (408, "request_timeout")
    assert answer.seconds < 8
    answer = told(server, head_of(host, f"Content-Length: {MEGABYTE + 1}") + b"\r\n{")
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"
    assert_well(server, client)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("Transfer-Encoding: chunked", b"8000\r\n" + b"a" * 0x8000 + b"\r\n"),
        ("Transfer-Encoding: chunked", b"1;" + b"e" * 0x8000 + b"\r\na\r\n"),
        ("Content-Length: 1000000", b"a"),
    ],
    ids=["chunks", "extensions", "a byte at a time"],
)
def test_a_body_that_goes_on_and_on_ends_within_its_time(
    server: Running, client: openai.OpenAI, line: str, part: bytes
) -> None:
    before = memory_of(server)
    with socket.create_connection(server.host_and_port, timeout=10) as opened:
        opened.sendall(head_of(server.host_and_port, line) + b"\r\n")
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - begin < 20:
                opened.sendall(part)
                time.sleep(0.01 if len(part) == 1 else 0)
        assert time.monotonic() - begin < 15
    assert memory_of(server) - before < 100 * MEGABYTE
    assert_well(server, client)


def test_those_who_stop_reading_are_dropped_after_a_while(
    server: Running, client: openai.OpenAI
) -> None:
    slow = [send(server, request(max_tokens=900, stream=True, **TOLD)) for _ in range(4)]
    wait_until(lambda: queue_of(server)["running"] == 4)
    listener = Listener(client, 300)
    wait_until(lambda: queue_of(server)["running"] == 0, 60)
    listener.check(longest_pause=20.0)
    connections = psutil.Process(server.process.pid)
    theirs = {opened.getsockname()[1] for opened in slow}
    wait_until(
        lambda: not theirs & {c.raddr.port for c in connections.net_connections() if c.raddr}, 15
    )
    for opened in slow:
        opened.close()
    assert_well(server, client)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with little room."""
    folders = save_folders(tmp_path_factory.mktemp("laugh"), *LAUGH, sequence_len=1000)
    room = {"max_connections": 20, "max_requests": 5, "max_buffered_bytes": MEGABYTE}
    limits = {**SHORT, **room, "body_seconds": 30, "crowded_header_seconds": 0.5}
    with started(folders, limits=limits) as running:
        yield running


def test_more_connections_than_there_is_room_for_are_told_so(narrow: Running) -> None:
    good = whole(narrow.host_and_port, request(max_tokens=2))
    with Held(narrow.host_and_port, b"", 20):
        answer = told(narrow, good)
        assert (answer.status, answer.code) == (429, "server_busy")
        assert int(answer.headers["retry-after"]) >= 1
        # Those that have a place and say nothing lose it soon.
        wait_until(lambda: told(narrow, good).status == 200)


def test_more_requests_than_may_run_are_told_so(narrow: Running) -> None:
    good = whole(narrow.host_and_port, request(max_tokens=2))
    half = head_of(narrow.host_and_port, "Content-Length: 500000") + b"\r\n{"
    with Held(narrow.host_and_port, half, 5):
        wait_until(lambda: told(narrow, good).status == 429)
        # Health and page are there all the same.
        assert get(narrow, "/health")[0] == 200
    wait_until(lambda: told(narrow, good).status == 200)


def test_long_bodies_that_arrive_at_once_have_a_limit_together(narrow: Running) -> None:
    head = head_of(narrow.host_and_port, "Content-Length: 1000000")
    with Held(narrow.host_and_port, head + b"\r\n" + b" " * 600_000, 3) as held:
        wait_until(lambda: held.num_open() <= 1)
        assert told(narrow, whole(narrow.host_and_port, request(max_tokens=2))).status == 200


def test_many_who_leave_at_once_leave_nothing_behind(
    server: Running, client: openai.OpenAI
) -> None:
    gone = [send(server, request(max_tokens=4000, stream=i % 2 == 0)) for i in range(12)]
    wait_until(lambda: queue_of(server)["waiting"] == 8)
    assert told(server, whole(server.host_and_port, request())).status == 429
    for opened in gone:
        opened.close()
    wait_until(lambda: queue_of(server)["running"] == 0, 5)
    assert_well(server, client)
    assert PATH in get(server, "/metrics")[1]
