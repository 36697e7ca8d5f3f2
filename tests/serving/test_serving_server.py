"""The server in a process of its own, asked by the official client and by worse ones."""

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from serving_tools import (
    LAUGH,
    NAME,
    SUM,
    Running,
    request,
    save_folders,
    started,
    wait_until,
)

pytestmark = pytest.mark.e2e

PATH = "/v1/chat/completions"
END_SECONDS = 6.0
LONG = 4096
"""Tokens that take this model so many seconds that no test waits for them."""
TOLD = {"logprobs": True, "top_logprobs": 20}
"""Makes each event of a stream some 1,600 bytes: 600 are more than all buffers on the way hold."""


@pytest.fixture(scope="module")
def laughing(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return save_folders(tmp_path_factory.mktemp("laugh"), *LAUGH, sequence_len=1000)


@pytest.fixture(scope="module")
def server(laughing: list[str]) -> Iterator[Running]:
    """Laughs without end, for one at a time; lets one wait."""
    with started([*laughing, "--rows", "1", "--max-waiting", "1"]) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0) as opened:
        yield opened


def ask(client: openai.OpenAI, model: str = NAME, **fields):
    messages = [{"role": "user", "content": "Laugh"}]
    return client.chat.completions.create(model=model, messages=messages, **fields)


def get(server: Running, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*server.host_and_port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    read = answer.read().decode()
    connection.close()
    return answer.status, read


def queue_of(server: Running) -> dict[str, int]:
    return json.loads(get(server, "/health")[1])["queue"]


def send(server: Running, body: dict) -> socket.socket:
    """A request whose answer nobody reads."""
    content = json.dumps(body).encode()
    host, port = server.host_and_port
    # A small buffer, so that little of the answer fits between the two.
    opened = socket.socket()
    opened.settimeout(30)
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
    assert [model.id for model in client.models.list()] == [NAME]


def test_the_first_piece_comes_long_before_the_last(client: openai.OpenAI) -> None:
    begin = time.monotonic()
    with ask(client, max_tokens=1000, stream=True) as stream:
        times = [time.monotonic() - begin for _ in stream]
    # A server that sent all at once would make them equal.
    assert times[1] < times[-1] / 2


def test_errors_are_those_of_the_official_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature=3") as caught:
        ask(client, temperature=3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="'gpt-4'"):
        ask(client, model="gpt-4")
    with pytest.raises(openai.PermissionDeniedError, match="evil"):
        ask(client, extra_headers={"Origin": "http://evil.example"})


def test_a_full_queue_is_a_429_that_says_when_to_come_back(
    server: Running, client: openai.OpenAI
) -> None:
    with ask(client, max_tokens=LONG, stream=True) as first:
        next(iter(first))
        waiting = send(server, request(max_tokens=LONG))
        wait_until(lambda: queue_of(server)["waiting"] == 1)
        with pytest.raises(openai.RateLimitError, match="wait already") as caught:
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


def test_a_client_that_does_not_read_holds_up_nobody(
    server: Running, client: openai.OpenAI
) -> None:
    slow = send(server, request(max_tokens=600, stream=True, **TOLD))
    wait_until(lambda: queue_of(server)["running"] == 1)
    wait_until(lambda: queue_of(server)["running"] == 0, 60)
    assert ask(client, max_tokens=3).choices[0].message.content == "hah"
    seen, num_bytes, is_done = b"", 0, False
    while not is_done:
        received = slow.recv(65536)
        assert received, "the stream broke off"
        num_bytes += len(received)
        is_done = b"data: [DONE]" in (seen := seen[-20:] + received)
    assert num_bytes > 600 * 1000
    slow.close()


def test_the_process_that_listens_has_no_torch(server: Running) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc is Linux's")
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_metrics_tell_of_replies_and_of_the_engine(server: Running, client: openai.OpenAI) -> None:
    ask(client, max_tokens=2)
    with ask(client, max_tokens=LONG, stream=True) as first:
        next(iter(first))
        status, text = get(server, "/metrics")
    assert status == 200
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    named = f'{{model="{NAME}"}}'
    assert float(lines[f"nanochat_requests_running{named}"]) == 1
    assert float(lines[f"nanochat_rows_running{named}"]) == 1
    assert 0 < float(lines[f"nanochat_kv_use_ratio{named}"]) <= 1
    assert float(lines[f"nanochat_reply_tokens_total{named}"]) >= 2
    assert float(lines[f"nanochat_time_to_first_token_seconds_count{named}"]) >= 2
    assert float(lines["nanochat_models_loaded"]) == 1
    wait_until(lambda: queue_of(server)["running"] == 0)


def test_with_a_key_the_official_client_needs_it(laughing: list[str]) -> None:
    with started(laughing, key="key-of-mine") as running:
        for key, is_right in (("key-of-mine", True), ("another", False)):
            with openai.OpenAI(base_url=f"{running.url}v1", api_key=key, max_retries=0) as client:
                if is_right:
                    assert ask(client, max_tokens=3).choices[0].message.content == "hah"
                else:
                    with pytest.raises(openai.AuthenticationError, match="NANOCHAT_API_KEY"):
                        ask(client)
        assert [get(running, path)[0] for path in ("/", "/health", "/ready")] == [200] * 3
        assert get(running, "/metrics")[0] == 401
        assert get(running, "/metrics", Authorization="Bearer key-of-mine")[0] == 200
        running.process.terminate()
        running.process.wait(END_SECONDS)
        assert "key-of-mine" not in "".join(running.lines.queue)


def test_a_server_that_others_can_reach_says_so(tmp_path: Path) -> None:
    # The warning is printed first; 127.0.0.1 answers, as all addresses do.
    folders = save_folders(tmp_path, *SUM)
    command = [sys.executable, "-m", "nanochat_core.serving.app", *folders, "--host", "0.0.0.0"]
    with subprocess.Popen(
        [*command, "--port", "0", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = process.stdout.readline()
        process.terminate()
        process.wait(END_SECONDS)
        said = process.stderr.read()
    assert "http://127.0.0.1:" in ready
    assert "warning: 0.0.0.0 can be reached from other machines" in said
