"""Real trackers, offline: what they have of a job that was killed and resumed."""

import importlib
import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from tracking_tools import (
    NUM_STEPS,
    make_home,
    make_spec,
    marked,
    run_job,
    trackio_rows,
    wait_until,
    wandb_folders,
    without_times,
    written,
)

from nanochat_core import supervise
from nanochat_core.config.job import JobSpec
from nanochat_core.errors import JobLostError
from tasks import torchrun
from tasks.tracking import TRACKING_FILE, tracked_run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that a tracker could write goes here."""
    return make_home(tmp_path, monkeypatch)


@pytest.mark.e2e
def test_wandb_knows_a_killed_and_resumed_job_as_one_run(home: Path, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "wandb", tracker_run="first try")
    assert run_job(spec, kill_after=1.5) == []
    assert marked(spec) == []
    assert run_job(spec, seconds=0.0) == []
    assert marked(spec) == []
    rows = written(spec)
    assert sorted(rows) == list(range(1, NUM_STEPS + 1))
    first, second = wandb_folders(home)
    own_id = json.loads(Path(spec.work_folder, TRACKING_FILE).read_text())["run_id"]
    assert first.run.run_id == second.run.run_id == own_id
    assert first.run.display_name == "first try"
    assert first.run.project == "nanochat"
    # Either folder alone is a history without a gap, in whatever order they are uploaded.
    assert first.steps == list(range(1, len(first.steps) + 1))
    assert len(first.steps) > 1
    assert second.rows == rows
    expected = {step: row for step, row in without_times(rows).items() if step in first.rows}
    del expected[first.steps[-1]], first.rows[first.steps[-1]]  # may lack its validation
    assert without_times(first.rows) == expected


@pytest.mark.e2e
def test_a_tracker_is_told_what_was_asked_for_and_no_path(home: Path, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "wandb", tracker_run="named")
    run_job(spec, seconds=0.0)
    (folder,) = wandb_folders(home)
    config = folder.config
    del config["_wandb"]  # versions and features of its own
    assert config == tracked_run(spec).config
    assert config["recipe"] == {"depth": 2}
    stored = b"".join(p.read_bytes() for p in home.rglob("*.wandb"))
    assert b"/a/store" not in stored
    assert not list(home.rglob("requirements.txt"))
    assert not list(home.rglob("wandb-metadata.json"))


@pytest.mark.e2e
def test_trackio_has_every_step_of_a_killed_and_resumed_job_once(
    home: Path, tmp_path: Path
) -> None:
    spec = make_spec(tmp_path, "trackio")
    assert run_job(spec, kill_after=1.5) == []
    between = trackio_rows(home)
    assert run_job(spec, seconds=0.0) == []
    assert marked(spec) == []
    rows, found = without_times(written(spec)), trackio_rows(home)
    assert 1 < len(between) < NUM_STEPS
    assert found[: len(between)] == between
    assert {(name, key) for name, key, *_ in found} == {(between[0][0], between[0][1])}
    assert between[0][0] == f"pretrain-{tracked_run(spec).id}"
    merged: dict[int, dict[str, float]] = {}
    for _, _, step, values in found:
        row = merged.setdefault(step, {})
        assert not set(row) & set(values)
        row |= values
    assert without_times(merged) == rows


class Silent:
    """Nobody who has to be told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def progress(self, done: int, total: int, unit: str, message: str) -> None:
        """Leave it."""

    def log(self, level: int, line: str) -> None:
        """Keep it."""
        self.lines.append(line)


def kill_trainer(spec: JobSpec, num_lines: int) -> None:
    """SIGKILL the rank once it has written so many lines."""
    metrics = Path(spec.work_folder, "metrics.jsonl")
    wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= num_lines, 60)
    for process in supervise.marked_processes(str(Path(spec.work_folder).resolve())):
        if "torch.distributed.run" not in process.cmdline():
            process.kill()


@pytest.mark.e2e
def test_a_killed_and_resumed_pretraining_is_one_run_without_a_gap(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "jobs")
    tools: Any = importlib.import_module("job_tools")
    num_steps = 100
    spec: JobSpec = tools.make_spec(
        tools.PRETRAIN.model_copy(update={"num_iterations": num_steps}),
        tools.make_line(tmp_path / "line"),
        tmp_path,
        station="pretrain",
        tracker="wandb",
        checkpoint_every=7,
        eval_every=10,
    )
    at = random.Random().randint(20, 80)
    print(f"killed after line {at}")  # noqa: T201  pytest shows it when the test fails
    killer = threading.Thread(target=kill_trainer, args=(spec, at))
    killer.start()
    report = Silent()
    with pytest.raises(JobLostError):
        torchrun.run_job("nanochat_core.jobs.pretrain", spec, report=report)
    killer.join()
    output = torchrun.run_job("nanochat_core.jobs.pretrain", spec, report=report)
    assert output.provenance["resumed_from_step"] > 0
    assert not [line for line in report.lines if "does not get" in line]
    rows = written(spec)
    assert sorted(rows) == list(range(1, num_steps + 1))
    assert marked(spec) == []
    first, second = wandb_folders(home)
    assert first.run.run_id == second.run.run_id
    assert second.rows == rows
    # In exact mode a repeated step has the same numbers, only its times are others.
    assert at // 2 < len(first.rows) < num_steps
    for step, row in without_times(first.rows).items():
        both = set(row) & set(rows[step])
        assert "train/loss" in both
        assert {name: row[name] for name in both} == {name: rows[step][name] for name in both}
