"""Jobs that are tracked, a home of their own, and what real trackers have stored there."""

import json
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nanochat_core import supervise
from nanochat_core.config.execution import Execution, Tracker
from nanochat_core.config.job import JobSpec
from tasks.tracking import TRACKING_FILE, tracking

NUM_STEPS = 40
CHECKPOINT_EVERY = 7


def make_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that a tracker could write goes here; nothing is set that a user has not."""
    folder = tmp_path / "home"
    (folder / "tmp").mkdir(parents=True)
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(folder / name))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    return folder


def make_spec(folder: Path, tracker: Tracker, **execution: Any) -> JobSpec:
    for name in ("work", "output"):
        (folder / name).mkdir(exist_ok=True)
    return JobSpec(
        station="pretrain",
        recipe={"depth": 2},
        execution=Execution(tracker=tracker, **execution),
        inputs={"tokens": "/a/store/tokens"},
        work_folder=str(folder / "work"),
        output_folder=str(folder / "output"),
    )


# Resumes as the training jobs do: the file is cut back to what the checkpoint holds.
JOB = """
import json, pathlib, sys, time
num_steps, every, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
path, checkpoint = pathlib.Path("metrics.jsonl"), pathlib.Path("checkpoint")
history = checkpoint.read_bytes() if checkpoint.exists() else b""
path.write_bytes(history)
first = json.loads(history.splitlines()[-1])["step"] + 1 if history else 1
with path.open("a") as lines:
    for step in range(first, num_steps + 1):
        time.sleep(seconds)
        line = {"step": step, "train/loss": 3 / step, "train/dt": time.time(), "train/mfu": None}
        print(json.dumps(line), file=lines, flush=True)
        if step % 5 == 0:
            print(json.dumps({"step": step, "val/bpb": 1 / step}), file=lines, flush=True)
        if step % every == 0:
            new = checkpoint.with_suffix(".new")
            new.write_bytes(path.read_bytes())
            new.replace(checkpoint)
"""


def run_job(spec: JobSpec, *, kill_after: float | None = None, seconds: float = 0.05) -> list[str]:
    """The job and its sink; the job is killed after a while. Returns the warnings."""
    warnings: list[str] = []
    work = Path(spec.work_folder)
    command = [sys.executable, "-c", JOB, str(NUM_STEPS), str(CHECKPOINT_EVERY), str(seconds)]
    with tracking(spec, warnings.append), subprocess.Popen(command, cwd=work) as job:
        if kill_after is not None:
            time.sleep(kill_after)
            job.kill()
        assert job.wait(60) == (0 if kill_after is None else -signal.SIGKILL)
    return warnings


def marked(spec: JobSpec) -> list[psutil.Process]:
    """The sink of a job, and what it has started."""
    return supervise.marked_processes(f"{Path(spec.work_folder).resolve()} {TRACKING_FILE}")


def written(spec: JobSpec) -> dict[int, dict[str, float]]:
    """The rows of metrics.jsonl as a tracker should show them; each line comes once."""
    rows: dict[int, dict[str, float]] = {}
    for line in Path(spec.work_folder, "metrics.jsonl").read_text().splitlines():
        values = {k: v for k, v in json.loads(line).items() if v is not None}
        row = rows.setdefault(values.pop("step"), {})
        assert not set(row) & set(values), "a step is in metrics.jsonl twice"
        row |= values
        if "val/bpb" in row:
            row["val_bpb"] = row["val/bpb"]
    return rows


def without_times(rows: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    """Repeated steps have other times."""
    timed = ("train/dt", "train/tok_per_sec", "total_training_time")
    return {s: {k: v for k, v in row.items() if k not in timed} for s, row in rows.items()}


def log_records(path: Path) -> list[bytes]:
    """The records of a .wandb file: a header, then blocks in the log format of LevelDB."""
    data, position, records, parts = path.read_bytes(), 7, [], b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(parts)
            parts = b""
    return records


class WandbFolder:
    """One offline folder as `wandb sync` would read it."""

    def __init__(self, folder: Path) -> None:
        from wandb.proto import wandb_internal_pb2

        (file,) = folder.glob("*.wandb")
        self.rows: dict[int, dict[str, float]] = {}
        self.steps: list[int] = []
        for body in log_records(file):
            record = wandb_internal_pb2.Record.FromString(body)
            if record.HasField("run"):
                self.run = record.run
            if record.HasField("history"):
                self._add(record.history)

    def _add(self, history: Any) -> None:
        items = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in history.item
        }
        step = items.pop("step")
        assert items["_step"] == step
        self.steps.append(step)
        self.rows[step] = {k: v for k, v in items.items() if not k.startswith("_")}

    @property
    def config(self) -> dict[str, Any]:
        return {item.key: json.loads(item.value_json) for item in self.run.config.update}


def wandb_folders(home: Path) -> list[WandbFolder]:
    folders = home.glob(".cache/nanochat-flows/wandb/offline-run-*")
    return [WandbFolder(folder) for folder in sorted(folders)]


def trackio_rows(home: Path) -> list[tuple[str, str, int, dict[str, float]]]:
    """Name, id, step and values of all rows, as SQLite has them."""
    database = home / ".cache/nanochat-flows/trackio/nanochat.db"
    connection = sqlite3.connect(database)
    rows = connection.execute("select run_name, run_id, step, metrics from metrics order by id")
    found = [(name, key, step, json.loads(values)) for name, key, step, values in rows]
    connection.close()
    return found


def wandb_files(home: Path) -> list[Path]:
    return list(home.rglob("*.wandb"))


def wait_until(is_done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline, "waited for too long"
        threading.Event().wait(0.05)
