"""How the server ends: replies come to their end if there is time, and nothing is left behind."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from serving_tools import LAUGH, NAME, Running, request, save_folders, started
from test_serving_server import END_SECONDS, LONG, TOLD, ask, get, queue_of, send, wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def laughing(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return save_folders(tmp_path_factory.mktemp("laugh"), *LAUGH, sequence_len=1000)


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture
def running(request: pytest.FixtureRequest, laughing: list[str]) -> Iterator[Running]:
    """A server that has so many seconds for what runs, 10 if nothing is said."""
    seconds = getattr(request, "param", 10)
    options = ["--rows", "1", "--max-waiting", "2", "--drain-seconds", str(seconds)]
    with started([*laughing, *options]) as opened:
        engines = psutil.Process(opened.process.pid).children(recursive=True)
        assert engines, "an engine has a process of its own"
        yield opened
        # Raises when one is still there after that time.
        for engine in engines:
            engine.wait(END_SECONDS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_replies_come_to_their_end(
    running: Running, client: openai.OpenAI, number: signal.Signals
) -> None:
    with ask(client, max_tokens=1000, stream=True) as stream:
        next(iter(stream))
        running.process.send_signal(number)
        wait_until(lambda: get(running, "/ready")[0] == 503)
        with pytest.raises(openai.InternalServerError, match="stopping") as caught:
            ask(client)
        assert caught.value.status_code == 503
        assert caught.value.code == "server_stopping"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert list(stream)[-1].choices[0].finish_reason == "length"
    begin = time.monotonic()
    assert running.process.wait(END_SECONDS) == 0
    assert time.monotonic() - begin < END_SECONDS
    assert list(running.lines.queue) == []


@pytest.mark.parametrize("running", [0.5], indirect=True)
def test_a_reply_that_takes_longer_is_told_why_it_ends(
    running: Running, client: openai.OpenAI
) -> None:
    with ask(client, max_tokens=LONG, stream=True) as stream:
        next(iter(stream))
        waiting = send(running, request(max_tokens=LONG))
        # One that could be complete but is not read.
        slow = send(running, request(max_tokens=600, stream=True, **TOLD))
        wait_until(lambda: queue_of(running)["waiting"] == 2)
        running.process.terminate()
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(stream)
    assert b" 503 " in waiting.recv(65536)
    assert running.process.wait(END_SECONDS) == 0
    assert "Traceback" not in "".join(running.lines.queue)
    waiting.close()
    slow.close()


@pytest.mark.parametrize("running", [60], indirect=True)
def test_the_second_signal_ends_at_once(running: Running, client: openai.OpenAI) -> None:
    with ask(client, max_tokens=LONG, stream=True) as stream:
        next(iter(stream))
        running.process.send_signal(signal.SIGINT)
        wait_until(lambda: get(running, "/ready")[0] == 503)
        begin = time.monotonic()
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(END_SECONDS) == 0
        assert time.monotonic() - begin < 4
    assert "Traceback" not in "".join(running.lines.queue)


def test_an_engine_does_not_outlive_a_server_that_is_killed(
    running: Running, client: openai.OpenAI
) -> None:
    with ask(client, max_tokens=LONG, stream=True) as stream:
        next(iter(stream))
        running.process.kill()
        running.process.wait()


def test_a_signal_ends_a_server_that_still_loads(laughing: list[str]) -> None:
    command = [sys.executable, "-m", "nanochat_core.serving.app", *laughing, "--port", "0"]
    with subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        server, engines = psutil.Process(process.pid), list[psutil.Process]()
        while not (engines := server.children(recursive=True)):
            time.sleep(0.01)
        process.terminate()
        assert process.wait(END_SECONDS) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b""
    for engine in engines:
        engine.wait(END_SECONDS)


def test_a_server_of_a_store_serves_by_name(tmp_path: Path) -> None:
    from test_serve_flow import publish

    from nanochat_core.artifacts.store import ArtifactStore

    save_folders(tmp_path, *LAUGH)
    opened = ArtifactStore(str(tmp_path / "store"))
    words = publish(opened, tmp_path / "tokenizer", "tokenizer")
    made = publish(opened, tmp_path / NAME, "sft", tokenizer=words)
    opened.set_alias("latest", made)
    with started(["--store", opened.url, "--model", "latest"], "latest") as running:
        ids = [entry["id"] for entry in json.loads(get(running, "/v1/models")[1])["data"]]
        assert ids[0] == "latest"
        assert any(made.short.startswith(name) or name.startswith(made.short) for name in ids[1:])
        with openai.OpenAI(base_url=f"{running.url}v1", api_key="none") as client:
            for name in ids:
                assert ask(client, name, max_tokens=3).choices[0].message.content == "hah"
