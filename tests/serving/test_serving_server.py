"""The server in a process of its own, asked by the official client and by worse ones."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import openai
import pytest
from serving_tools import LAUGH, SUM, Running, request, save_folders, started

pytestmark = pytest.mark.e2e

PATH = "/v1/chat/completions"
END_SECONDS = 6.0
LONG = 4096
"""Tokens that take this model so many seconds that no test waits for them."""
LONG_NAME = "n" * 40_000
"""It stands in every chunk: 300 of them are more than the buffers on the way to a client hold."""


@pytest.fixture(scope="module")
def laughing(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return save_folders(tmp_path_factory.mktemp("laugh"), *LAUGH, sequence_len=1000)


@pytest.fixture(scope="module")
def server(laughing: list[str]) -> Iterator[Running]:
    """Laughs without end; lets one wait."""
    with started([*laughing, "--max-waiting", "1"]) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0) as opened:
        yield opened


def ask(client: openai.OpenAI, model: str = "scripted", **fields):
    messages = [{"role": "user", "content": "Laugh"}]
    return client.chat.completions.create(model=model, messages=messages, **fields)


def queue_of(server: Running) -> dict[str, int]:
    connection = http.client.HTTPConnection(*server.host_and_port, timeout=10)
    connection.request("GET", "/health")
    queue = json.loads(connection.getresponse().read())["queue"]
    connection.close()
    return queue


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def send(server: Running, body: dict) -> socket.socket:
    """A request whose answer nobody reads."""
    content = json.dumps(body).encode()
    host, port = server.host_and_port
    # A small buffer, so that little of the answer fits between the two.
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.connect((host, port))
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    opened.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return opened


def test_the_official_client_gets_a_reply(client: openai.OpenAI) -> None:
    reply = ask(client, max_tokens=5)
    assert reply.choices[0].message.content == "hahah"
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 5
    assert [model.id for model in client.models.list()] == ["scripted"]


def test_the_official_client_gets_a_stream(client: openai.OpenAI) -> None:
    chunks = list(ask(client, max_tokens=5, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "hahah"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 5


def test_the_first_piece_comes_long_before_the_last(client: openai.OpenAI) -> None:
    begin = time.monotonic()
    with ask(client, max_tokens=LONG, stream=True) as stream:
        times = [time.monotonic() - begin for _ in stream]
    assert len(times) == LONG + 2
    # A server that sent all at once would make them equal.
    assert times[1] < times[-1] / 2


def test_errors_are_those_of_the_official_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature=3") as caught:
        ask(client, temperature=3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served"):
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.PermissionDeniedError, match="evil"):
        ask(client, extra_headers={"Origin": "http://evil.example"})


def test_a_full_queue_is_a_429_that_says_when_to_come_back(
    server: Running, client: openai.OpenAI
) -> None:
    with ask(client, max_tokens=LONG, stream=True) as first:
        next(iter(first))
        waiting = send(server, request(max_tokens=LONG))
        wait_until(lambda: queue_of(server)["waiting"] == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests wait") as caught:
            ask(client)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        waiting.close()
        # It left before its turn came.
        wait_until(lambda: queue_of(server)["waiting"] == 0)
        assert queue_of(server)["running"] == 1
    wait_until(lambda: queue_of(server)["running"] == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_the_engine(
    server: Running, client: openai.OpenAI, stream: bool
) -> None:
    gone = send(server, request(max_tokens=LONG, stream=stream))
    wait_until(lambda: queue_of(server)["running"] == 1)
    gone.close()
    begin = time.monotonic()
    wait_until(lambda: queue_of(server)["running"] == 0)
    left = time.monotonic() - begin
    begin = time.monotonic()
    assert ask(client, max_tokens=100).usage.completion_tokens == 100
    # All of its reply would have taken 40 times as long.
    assert left < 0.5 + 8 * (time.monotonic() - begin)


def test_a_client_that_does_not_read_holds_up_nobody(laughing: list[str]) -> None:
    with started(laughing, name=LONG_NAME) as running:
        slow = send(running, request(max_tokens=300, stream=True))
        wait_until(lambda: queue_of(running)["running"] == 1)
        wait_until(lambda: queue_of(running)["running"] == 0, 60)
        with openai.OpenAI(base_url=f"{running.url}v1", api_key="none") as client:
            reply = ask(client, model=LONG_NAME, max_tokens=3)
        assert reply.choices[0].message.content == "hah"
        seen, num_bytes, is_done = b"", 0, False
        while not is_done:
            received = slow.recv(65536)
            assert received, "the stream broke off"
            num_bytes += len(received)
            is_done = b"data: [DONE]" in (seen := seen[-20:] + received)
        assert num_bytes > 300 * len(LONG_NAME)
        slow.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_within_seconds_with_streams_open(
    laughing: list[str], number: signal.Signals
) -> None:
    with started(laughing, name=LONG_NAME) as running, ExitStack() as clients:
        # One whose reply is complete and not taken, one in the middle of it, one in the queue.
        clients.enter_context(closing(send(running, request(max_tokens=300, stream=True))))
        wait_until(lambda: queue_of(running)["running"] == 1)
        wait_until(lambda: queue_of(running)["running"] == 0, 60)
        clients.enter_context(closing(send(running, request(max_tokens=LONG, stream=True))))
        wait_until(lambda: queue_of(running)["running"] == 1)
        waiting = clients.enter_context(closing(send(running, request(max_tokens=LONG))))
        wait_until(lambda: queue_of(running)["waiting"] == 1)
        running.process.send_signal(number)
        # Raises when it is still there after that time.
        running.process.wait(END_SECONDS)
        assert b" 503 " in waiting.recv(65536)
    assert running.process.returncode in (-number, 130)
    said = "".join(running.lines.queue)
    assert "Traceback" not in said, said


def test_a_stream_is_told_that_the_server_ends(laughing: list[str]) -> None:
    with started(laughing) as running:
        with openai.OpenAI(base_url=f"{running.url}v1", api_key="none") as client:
            stream = iter(ask(client, max_tokens=LONG, stream=True))
            next(stream)
            running.process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIError, match="the server is stopping"):
                list(stream)
        running.process.wait(END_SECONDS)


def test_a_server_that_others_can_reach_says_so(tmp_path: Path) -> None:
    # The warning is printed first; 127.0.0.1 answers, as all addresses do.
    folders = save_folders(tmp_path, *SUM)
    command = [sys.executable, "-m", "nanochat_core.serving.app", *folders, "--host", "0.0.0.0"]
    with subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = process.stdout.readline()
        process.terminate()
        process.wait(END_SECONDS)
        said = process.stderr.read()
    assert "http://127.0.0.1:" in ready
    assert "warning: 0.0.0.0 can be reached from other machines" in said
