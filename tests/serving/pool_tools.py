"""Scripted models in folders, catalogs of them, and an event loop that outlives one test."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from nanochat_core.inference.engine import EngineSettings, InferenceEngine
from nanochat_core.inference.loading import save_model
from nanochat_core.inference.requests import Request
from nanochat_core.inference.settings import GREEDY, SamplingSettings
from nanochat_core.inference.streaming import Piece
from nanochat_core.serving.catalog import open_catalog
from nanochat_core.serving.loaded import Delta, ReplyStream
from nanochat_core.serving.pool import ModelPool
from nanochat_core.serving.settings import ServerSettings
from tests.inference.scripted import bigram_model, byte_tokenizer, chain

YES = ("assistant_start", "y", "e", "s", "assistant_end")
NO = ("assistant_start", "n", "o", "assistant_end")
LAUGH = ("assistant_start", "h", "a", "h")
"""Never ends by itself."""
SUM = (
    *("assistant_start", "python_start", "6", "*", "7", "python_end"),
    *("output_end", "o", "k", "assistant_end"),
)
"""What follows `python_end` is the calculator's: 42."""
TOKENIZER = byte_tokenizer()
START = TOKENIZER.special_id("assistant_start")
NO_TOKEN = 10**6
"""A prompt with it makes the step fail that reads it."""
PATIENCE_SECONDS = 60.0

Result = TypeVar("Result")


def make_engine(*steps: str | int, num_rows: int = 4, **changes: Any) -> InferenceEngine:
    """An engine whose model says these tokens."""
    model = bigram_model(TOKENIZER, chain(TOKENIZER, *steps), **changes)
    return InferenceEngine(model, TOKENIZER, EngineSettings(num_rows=num_rows))


def save_by_hand(
    base: Path, tag: str, *steps: str | int, kind: str = "sft", **changes: Any
) -> Path:
    """A finished model of that kind and tag, as a job leaves it; returns its folder."""
    folder = base / kind / tag / "model-000001"
    save_model(bigram_model(TOKENIZER, chain(TOKENIZER, *steps), **changes), folder, {})
    TOKENIZER.save(folder / "tokenizer")
    (folder / "outputs.json").write_text(json.dumps({}), encoding="utf-8")
    return folder


def settings_of(model: Path | str, **changes: Any) -> ServerSettings:
    """Settings of a server whose default model is that one."""
    values = {"model": str(model), "device": "cpu", "num_rows": 4, "max_waiting": 8}
    return ServerSettings.model_validate({**values, **changes})


def request(num_tokens: int = 4000, prompt: Sequence[int] = (START,), **fields: Any) -> Request:
    """A greedy request."""
    return Request(tuple(prompt), fields.pop("settings", GREEDY), num_tokens, **fields)


def drawn(num_tokens: int, seed: int) -> Request:
    """A request whose reply depends on its seed."""
    return request(num_tokens, settings=SamplingSettings(temperature=3.0, seed=seed))


async def read_all(stream: ReplyStream) -> list[Delta]:
    """A reply, to its end."""
    return [delta async for delta in stream]


def text_of(deltas: Sequence[Delta]) -> str:
    """The visible text."""
    pieces = [piece for delta in deltas for piece in delta.pieces]
    return "".join(piece.text for piece in pieces if piece.kind == "text")


def reply_of(engine: InferenceEngine, asked: Request) -> tuple[list[Piece], int, str | None]:
    """What an engine of this process says: pieces, number of tokens, finish reason."""
    engine.submit(asked)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    pieces = [piece for output in outputs for piece in output.pieces]
    return pieces, sum(o.token is not None for o in outputs), outputs[-1].finish_reason


async def until(is_true: Callable[[], bool]) -> None:
    """Wait for something that is about to be so."""
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while not is_true():
        assert time.monotonic() < ends_at, "it did not come to pass"
        await asyncio.sleep(0.005)


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class Pooled:
    """A pool and the event loop that it belongs to."""

    pool: ModelPool
    runner: asyncio.Runner

    def run(self, body: Coroutine[Any, Any, Result]) -> Result:
        """Run something in the loop, but not for ever."""
        return self.runner.run(asyncio.wait_for(body, PATIENCE_SECONDS))


@contextmanager
def pooled(base: Path, default: str, **changes: Any) -> Iterator[Pooled]:
    """A pool of models made by hand, with the default one loaded; nothing is left of it."""
    settings = settings_of(default, by_hand=base, **changes)
    pool = ModelPool(open_catalog(settings), settings, idle_seconds=0.0)
    with asyncio.Runner() as runner:
        runner.run(pool.start())
        try:
            yield Pooled(pool, runner)
        finally:
            runner.run(pool.drain(0.0))
