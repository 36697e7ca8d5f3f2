"""Two gloo ranks that train while their checkpoints are written."""

import json
import multiprocessing
import socket
import time
from pathlib import Path
from typing import Any

import checkpoint_workers
import pytest
import torch
from safetensors.torch import load_file

from nanochat_core.training.checkpoint_files import Checkpoint, best_checkpoint

pytestmark = pytest.mark.distributed

SECONDS_ALLOWED = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that trained and saved; none outlives the fixture."""
    folder = tmp_path_factory.mktemp("saving")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=checkpoint_workers.main, args=(rank, port, folder))
        for rank in range(checkpoint_workers.WORLD)
    ]
    try:
        for process in processes:
            process.start()
        deadline = time.monotonic() + SECONDS_ALLOWED
        while any(p.is_alive() for p in processes) and time.monotonic() < deadline:
            if any(p.exitcode for p in processes):
                break
            time.sleep(0.05)
        assert [p.exitcode for p in processes] == [0, 0]
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
    return folder


@pytest.fixture(params=[0, 1])
def seen(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / f"seen-{request.param}.json").read_text())
    return values


def test_only_the_training_thread_calls_torch_distributed(seen: dict[str, Any]) -> None:
    assert seen["threads"] == ["MainThread"]
    assert {"MainThread all_reduce", "MainThread ProcessGroup.allreduce"} <= set(seen["functions"])
    # A thread that did would have been noticed, and saves were under way meanwhile.
    assert seen["probe"] >= 1
    assert seen["calls_while_writing"] > 20


@pytest.mark.parametrize("step", range(1, checkpoint_workers.NUM_SAVES + 1))
def test_what_was_saved_beside_training_is_the_state_of_its_step(folder: Path, step: int) -> None:
    name = f"step-{step:08d}-{checkpoint_workers.TOKEN}"
    checkpoint = Checkpoint.open(folder / "checkpoints" / name, checkpoint_workers.IDENTITY)
    for rank in range(checkpoint_workers.WORLD):
        weights = load_file(folder / f"weights-{step}-{rank}.safetensors")
        for name, tensor in weights.items():
            assert torch.equal(checkpoint.read(f"model.{name}"), tensor), name


def test_the_best_of_several_ranks_is_marked_once(folder: Path) -> None:
    best = best_checkpoint(folder / "checkpoints", checkpoint_workers.IDENTITY)
    assert best is not None
    assert best.step == checkpoint_workers.NUM_SAVES
