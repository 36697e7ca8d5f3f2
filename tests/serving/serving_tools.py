"""Servers with a scripted model, in this process or in one of their own.

Their engines are real processes either way, which takes seconds: have one client for many tests.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.loading import save_model
from nanochat_core.serving.app import KEY_VARIABLE, create_app
from nanochat_core.serving.catalog import open_catalog
from nanochat_core.serving.connections import ConnectionLimits
from nanochat_core.serving.pool import ModelPool
from nanochat_core.serving.settings import ServerSettings
from tests.inference.scripted import bigram_model, byte_tokenizer, chain

YES = ("assistant_start", "y", "e", "s", "assistant_end")
LAUGH = ("assistant_start", "h", "a", "h")
"""Never ends by itself."""
SUM = (
    *("assistant_start", "python_start", "6", "*", "7", "python_end"),
    *("output_end", "o", "k", "assistant_end"),
)
"""What follows `python_end` is the calculator's: 42."""
ACCENT = ("assistant_start", 0xC3, 0xA9, "assistant_end")
"""One character of two tokens."""
NAME = "scripted"
"""What the models are called: a folder's model is called as the folder."""
SECONDS_ALLOWED = 60.0
_MAIN = (
    "import json, sys; from nanochat_core.serving import app, connections; "
    "limits = connections.ConnectionLimits(**json.loads(sys.argv[1])); "
    "sys.exit(app.main(sys.argv[2:], limits))"
)


def make_engine(*steps: str | int, **changes: Any) -> InferenceEngine:
    """A model that says these tokens, whatever it is asked."""
    tokenizer = byte_tokenizer()
    return InferenceEngine(bigram_model(tokenizer, chain(tokenizer, *steps), **changes), tokenizer)


@contextmanager
def in_process(
    *steps: str | int, limits: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[TestClient]:
    """A client of an application in this process, whose engine is a process of its own."""
    with tempfile.TemporaryDirectory() as folder, one_thread():
        if not settings.keys() & {"model", "store", "by_hand"}:
            _, model, _, tokenizer = save_folders(Path(folder), *steps)
            settings |= {"model": model, "tokenizer": Path(tokenizer)}
        chosen = ServerSettings(**{"device": "cpu", "replicas": 1, **settings})
        pool = ModelPool(open_catalog(chosen), chosen)
        app = create_app(chosen, pool, ConnectionLimits(**limits or {}))
        with TestClient(app, base_url="http://127.0.0.1") as client:
            yield client


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes that are started here compute with one thread."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def request(text: str = "Are you there?", **fields: Any) -> dict[str, Any]:
    """A body with one message."""
    return {"messages": [{"role": "user", "content": text}], **fields}


def chunks_of(lines: str) -> list[dict[str, Any]]:
    """The chunks of a stream that ended well."""
    *events, done, rest = lines.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def save_folders(folder: Path, *steps: str | int, name: str = NAME, **changes: Any) -> list[str]:
    """The arguments that name a scripted model's folders."""
    engine = make_engine(*steps, **changes)
    save_model(engine.model, folder / name, {})
    engine.tokenizer.save(folder / "tokenizer")
    return ["--model", str(folder / name), "--tokenizer", str(folder / "tokenizer")]


@dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    lines: "queue.Queue[str]"

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Where to connect."""
        host, port = self.url.removeprefix("http://").rstrip("/").rsplit(":", 1)
        return host, int(port)


@contextmanager
def started(
    arguments: list[str],
    name: str = NAME,
    *,
    key: str = "",
    limits: Mapping[str, Any] | None = None,
) -> Iterator[Running]:
    """A server that is ready; it is killed at the end of the block if it still runs."""
    entry = ["-m", "nanochat_core.serving.app"]
    if limits is not None:
        entry = ["-c", _MAIN, json.dumps(limits)]
    process = subprocess.Popen(
        [sys.executable, *entry, *arguments, "--port", "0", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", KEY_VARIABLE: key},
    )
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        ready = lines.get(timeout=SECONDS_ALLOWED)
        assert ready.startswith(f"serving {name} on cpu: http://"), ready
        yield Running(process, ready.split()[-1], lines)
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Look again and again; fails when nothing comes of it in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
