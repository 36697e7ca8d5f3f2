"""Jobs killed with SIGKILL at random steps: the files of a run that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from job_tools import MODEL_FILES, SECONDS_ALLOWED, SFT, make_spec, results
from rl_tools import RL, make_chat_model

from nanochat_core.config.base import Recipe
from nanochat_core.config.job import METRICS_FILE, JobSpec

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("rl_resume")]

NUM_STEPS, CHECKPOINT_EVERY, EVAL_EVERY = 15, 2, 4
TIMES = ("train/dt", "train/tok_per_sec", "total_training_time")


def start(spec: JobSpec) -> subprocess.Popen[str]:
    path = Path(spec.work_folder) / "job.json"
    spec.save(path)
    return subprocess.Popen(
        [sys.executable, "-m", f"nanochat_core.jobs.{spec.station}", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def last_step(spec: JobSpec) -> int:
    """The last step that metrics.jsonl tells of; a line may be half written."""
    path = Path(spec.work_folder) / METRICS_FILE
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(whole[-1])["step"] if whole else -1


def kill_at(spec: JobSpec, step: int) -> str:
    """Run the job until it tells of a step, kill it on the spot; returns its log."""
    # What the process before had told is history: the job takes over what its checkpoint knows.
    (Path(spec.work_folder) / METRICS_FILE).unlink(missing_ok=True)
    process = start(spec)
    deadline = time.monotonic() + SECONDS_ALLOWED
    while last_step(spec) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"step {step} did not come"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, log = process.communicate(timeout=SECONDS_ALLOWED)
    assert process.returncode == -signal.SIGKILL
    return log


def finish(spec: JobSpec) -> str:
    """Run the job to its end; returns its log."""
    process = start(spec)
    _, log = process.communicate(timeout=SECONDS_ALLOWED)
    assert process.returncode == 0, log
    return log


def metrics(spec: JobSpec) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock said."""
    text = (Path(spec.work_folder) / METRICS_FILE).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.fixture
def chat_model(tmp_path: Path) -> dict[str, str]:
    return make_chat_model(tmp_path / "chat")


@pytest.mark.parametrize("station", ["rl", "sft"])
def test_two_kills_at_random_steps_change_neither_model_nor_metrics(
    base: dict[str, str], chat_model: dict[str, str], tmp_path: Path, station: str
) -> None:
    recipe: Recipe = RL if station == "rl" else SFT
    recipe = recipe.model_copy(update={"num_iterations": NUM_STEPS})
    settings = {"checkpoint_every": CHECKPOINT_EVERY, "eval_every": EVAL_EVERY}
    inputs = chat_model if station == "rl" else base
    straight, killed = (
        make_spec(recipe, inputs, tmp_path / name, station=station, **settings)
        for name in ("straight", "killed")
    )
    finish(straight)
    # The newest checkpoint may still be on its way to the disk; the one before it is whole.
    steps = sorted(random.Random().sample(range(2 * CHECKPOINT_EVERY + 1, NUM_STEPS - 2), 2))
    kill_at(killed, steps[0])
    assert "resumed after step" in kill_at(killed, steps[1])
    assert "resumed after step" in finish(killed)
    assert results(killed, MODEL_FILES) == results(straight, MODEL_FILES), f"kills at {steps}"
    assert metrics(killed) == metrics(straight), f"kills at {steps}"
