"""A crowd of clients, good ones and bad ones: nobody is harmed, and nothing is left behind."""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving_tools import LAUGH, Running, save_folders, started
from soak_tools import Memory, Streams, crowd, family, num_open, numbers, until_true

from nanochat_core.bench.serve_client import Target
from nanochat_core.inference.checkpoint_manager import CheckpointManager
from nanochat_core.inference.loading import save_model
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from tests.inference.scripted import byte_tokenizer

MEBI = 1 << 20
UNENDING = 4096
"""Tokens for which nobody waits."""
FREED_SECONDS, FREED_STEPS = 2.0, 100
"""More than the one step that it takes: two looks through a server that shares its processor."""
DRAIN_SECONDS = 3.0
FLUSH_SECONDS = 2.0
"""What a crowded machine may take to tell ten clients."""
END_SECONDS = 10.0
"""For processes to end after that, as much longer as it takes to load them."""
STORE_VARIABLE = "NANOCHAT_SOAK_STORE"


def target_of(running: Running) -> Target:
    return Target.of_url(running.url)


async def freed_after_deaths(target: Target, num_streams: int, num_rows: int) -> dict[str, float]:
    """Kill half of some endless streams; how soon all that they had is free again."""
    streams = await Streams.start(target, [UNENDING] * num_streams)
    await until_true(target, lambda found: is_full(found, num_streams, num_rows), 30.0)
    num_left = num_streams - num_streams // 2
    before, begin = await numbers(target), time.monotonic()
    await streams.die(num_streams // 2)
    after = await until_true(target, lambda found: num_open(found) <= num_left, FREED_SECONDS)
    found = {
        "freed_seconds": round(time.monotonic() - begin, 4),
        "freed_steps": after["engine_steps_total"] - before["engine_steps_total"],
    }
    # Whoever waited has the rows of the dead.
    await until_true(target, lambda found: is_full(found, num_left, num_rows), FREED_SECONDS)
    await streams.die(num_left)
    await until_true(target, is_empty, FREED_SECONDS)
    assert found["freed_steps"] <= FREED_STEPS, found
    return found


def is_full(found: dict[str, float], num_streams: int, num_rows: int) -> bool:
    """Whether so many replies are open, in as many rows as there are."""
    rows = min(num_streams, num_rows)
    return num_open(found) == num_streams and found["rows_running"] == rows


def is_empty(found: dict[str, float]) -> bool:
    return num_open(found) == found["rows_running"] == found["kv_tokens"] == 0


async def drained(target: Target, running: Running) -> dict[str, Any]:
    """End a server in the middle of replies, which are completed or told so."""
    processes = family(running.process.pid)
    streams = await Streams.start(target, [60] * 5 + [UNENDING] * 5)
    await streams.flow()
    begin = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    samples = await streams.end()
    drained_seconds = time.monotonic() - begin
    assert drained_seconds < DRAIN_SECONDS + FLUSH_SECONDS
    assert [sample.problem for sample in samples[:5]] == [""] * 5
    assert {sample.problem for sample in samples[5:]} <= {"", "in the stream: server_stopping"}
    code = await asyncio.to_thread(running.process.wait, END_SECONDS)
    ended_seconds = time.monotonic() - begin
    assert code == 0
    assert not psutil.wait_procs(processes, timeout=1.0)[1]
    said = "".join(running.lines.queue)
    assert "Traceback" not in said, said
    return {"drained_seconds": round(drained_seconds, 2), "ended_seconds": round(ended_seconds, 2)}


@pytest.mark.e2e
def test_a_crowd_leaves_nothing_behind_but_answers(tmp_path: Path) -> None:
    rows, waiting = 16, 24
    flags = ["--rows", str(rows), "--max-waiting", str(waiting)]
    flags += ["--drain-seconds", str(DRAIN_SECONDS)]

    async def visit(running: Running) -> None:
        target, memory = target_of(running), Memory(running.process.pid)
        seen = await memory.watch(crowd(target, 60, 8.0, max_tokens=150), 0.1)
        assert not seen.problems
        assert min(seen.num_answered, seen.num_busy, seen.num_left) > 10, seen
        await until_true(target, is_empty, FREED_SECONDS)
        assert len(memory.sizes) >= 2
        for before, after in memory.growth().values():
            # A few seconds in, a process has not yet seen all that it will ever hold.
            assert after - before < 12 * MEBI, memory.growth()
        await freed_after_deaths(target, rows + 10, rows)
        await drained(target, running)

    with started([*save_folders(tmp_path, *LAUGH, sequence_len=1000), *flags]) as running:
        asyncio.run(visit(running))


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """The newest model of the store that the environment names, else one that was never trained."""
    if store := os.environ.get(STORE_VARIABLE):
        found = CheckpointManager("latest", store=store, device="cpu").find()
        return ["--model", str(found.model), "--tokenizer", str(found.tokenizer)]
    tokenizer = byte_tokenizer()
    shape = {"sequence_len": 256, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 128}
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, **shape))
    model.init_weights(0)
    save_model(model, tmp_path / "model", {})
    tokenizer.save(tmp_path / "tokenizer")
    return ["--model", str(tmp_path / "model"), "--tokenizer", str(tmp_path / "tokenizer")]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_hundred_clients_for_two_minutes(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, num_clients, seconds = 32, 200, 120.0
    flags = ["--rows", str(rows), "--max-waiting", "150", "--drain-seconds", str(DRAIN_SECONDS)]

    async def visit(running: Running) -> dict[str, Any]:
        target, memory = target_of(running), Memory(running.process.pid)
        seen = await memory.watch(crowd(target, num_clients, seconds, max_tokens=200), 1.0)
        assert not seen.problems
        await until_true(target, is_empty, FREED_SECONDS)
        growth = memory.growth()
        figures = {
            "clients": num_clients,
            "seconds": seconds,
            **{name: value for name, value in vars(seen).items() if name.startswith("num_")},
            "tokens_per_second": round(seen.num_tokens / seconds, 1),
            "mebibytes": [[round(size / MEBI, 1) for size in sizes] for sizes in growth.values()],
        }
        figures |= await drained(target, running)
        assert all(after < 1.05 * before for before, after in growth.values()), figures
        return figures

    with started([*folders, *flags], Path(folders[1]).name) as running:
        figures = asyncio.run(visit(running))
    # Of this model it is known that it never ends by itself.
    endless = save_folders(tmp_path / "endless", *LAUGH, sequence_len=1000)
    with started([*endless, *flags]) as running:
        figures |= asyncio.run(freed_after_deaths(target_of(running), num_clients // 2, rows))
    with capsys.disabled():
        sys.stdout.write(json.dumps(figures) + "\n")
