"""The load and the command, with servers that listen: bad ones, and ours."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nanochat_core.bench.serve_client import Target
from nanochat_core.bench.serve_load import Client, Load, Prompts, Sample, Window
from nanochat_core.inference.loading import save_model
from tests.inference.scripted import bigram_model, byte_tokenizer, chain

pytestmark = pytest.mark.e2e

JSON_HEAD = (
    "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{more}Content-Length: {size}\r\n"
)
Answer = Callable[[int], bytes]


def answer(status: str, body: dict[str, Any], more: str = "") -> bytes:
    content = json.dumps(body)
    return f"{JSON_HEAD.format(status=status, more=more, size=len(content))}\r\n{content}".encode()


GOOD = answer("200 OK", {"usage": {"prompt_tokens": 2, "completion_tokens": 3}})
BUSY = answer("429 Busy", {"error": {"code": "server_busy"}}, "Retry-After: 0\r\n")


def ask_a_server_that_says(*answers: bytes, num_requests: int = 1) -> tuple[list[Sample], int]:
    """The samples of one client, and over how many connections they came.

    An answer that ends in the middle ends the connection.
    """
    left, num_connections = list(answers), 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        is_whole = True
        while left and is_whole and (head := await reader.readuntil(b"\r\n\r\n")):
            await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
            writer.write(left[0])
            is_whole = left.pop(0).endswith(b"}")
        writer.close()

    async def together() -> list[Sample]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            window = Window(time.monotonic(), num_requests=num_requests)
            load = Load(1, Prompts(("hello",)), 3, is_streamed=False)
            return await Client(Target("127.0.0.1", port), load, window, 0).run()

    return asyncio.run(together()), num_connections


def test_a_client_asks_again_what_a_full_queue_refused() -> None:
    samples, num_connections = ask_a_server_that_says(BUSY, BUSY, GOOD)
    assert [sample.problem for sample in samples] == ["429 server_busy"] * 2 + [""]
    assert num_connections == 1


def test_a_client_goes_on_over_a_new_connection_after_one_that_broke() -> None:
    samples, num_connections = ask_a_server_that_says(
        GOOD, GOOD[:-9], b"SMTP\r\n\r\n}", GOOD, num_requests=4
    )
    problems = [sample.problem for sample in samples]
    assert problems == ["", "ConnectionError", "ValueError", ""]
    assert num_connections == 3


def bench(*options: str) -> dict[str, Any]:
    """The line of the command, whose processes are all gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nanochat_core.bench.serve", *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    # Python's own helper of process pools ends a moment after its parent.
    left = [p for p in psutil.process_iter() if _session(p) == process.pid]
    assert not psutil.wait_procs(left, timeout=5)[1]
    (line,) = said.splitlines()
    report: dict[str, Any] = json.loads(line)
    return report


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model that counts to four and ends."""
    folder = tmp_path_factory.mktemp("counting")
    tokenizer = byte_tokenizer()
    steps = ("assistant_start", "1", "2", "3", "4", "assistant_end")
    save_model(bigram_model(tokenizer, chain(tokenizer, *steps), sequence_len=64), folder / "m", {})
    tokenizer.save(folder / "t")
    return ["--model", str(folder / "m"), "--tokenizer", str(folder / "t"), "--device", "cpu"]


def test_the_command_measures_a_server_of_its_own_beside_the_bare_engine(
    folders: list[str], tmp_path: Path
) -> None:
    load = ["--clients", "4", "--rows", "2", "--prompt-tokens", "100", "--against-engine"]
    times = ["--seconds", "1.5", "--warm-up", "0.5"]
    found = bench(*folders, *load, *times, "--out", str(tmp_path / "line.json"))
    assert found == json.loads((tmp_path / "line.json").read_text())
    assert (found["problems"], found["requests_failed"], found["requests_busy"]) == ({}, 0, 0)
    assert (found["reply_tokens_mean"], found["rows"]) == (4, 2)
    assert 90 <= found["prompt_tokens_mean"] <= 110
    assert found["tokens_per_second"] == pytest.approx(4 * found["requests_per_second"], rel=0.2)
    assert 0 < found["batch_size_mean"] <= 2.5
    for name in ("ttft_seconds", "request_seconds"):
        assert 0 < found[name]["p50"] <= found[name]["p90"] <= found[name]["p99"] < 10
    share = found["tokens_per_second"] / found["engine_tokens_per_second"]
    assert found["engine_share"] == pytest.approx(share, abs=1e-3)


def test_a_made_up_model_answers_without_streams() -> None:
    load = ["--no-stream", "--requests", "6", "--clients", "2", "--max-tokens", "8"]
    found = bench("--depth", "1", "--device", "cpu", *load, "--prompt", "Hi")
    assert (found["requests"], found["problems"], found["depth"]) == (6, {}, 1)
    assert 0 < found["reply_tokens_mean"] <= 8
    assert (found["ttft_seconds"], found["tpot_seconds"]) == (None, None)
    tokens = 6 * found["reply_tokens_mean"]
    assert found["tokens_per_second"] == pytest.approx(tokens / found["measured_seconds"], rel=0.1)
