"""The process that sends metrics: its life, its troubles, and how it follows a file."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracking_tools import (
    make_home,
    make_spec,
    marked,
    wait_until,
    wandb_files,
    wandb_folders,
)

from nanochat_core.config.execution import Tracker
from nanochat_core.errors import ConfigError
from tasks.tracking import TRACKING_LOG, check_tracker, tracking
from tasks.tracking_backends import settle_environment
from tasks.tracking_file import MetricsFile, StepRows


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that a tracker could write goes here."""
    return make_home(tmp_path, monkeypatch)


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_sink_opens_no_connection_and_writes_only_below_home(
    home: Path, tmp_path: Path, tracker: Tracker
) -> None:
    spec = make_spec(tmp_path, tracker)
    work, trace = Path(spec.work_folder), tmp_path / "trace"
    spec.save(work / "job.json")
    (work / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    sink = [sys.executable, "-m", "tasks.tracking", str(work / "job.json")]
    subprocess.run(
        ["strace", "-f", "-o", str(trace), "-e", "trace=connect,openat,mkdirat,mkdir", *sink],
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    calls = trace.read_text().splitlines()
    outside = [line for line in calls if "connect(" in line and "AF_UNIX" not in line]
    assert outside == []
    made = [line for line in calls if "O_CREAT" in line and "= -1" not in line]
    assert made
    assert [line for line in made if str(tmp_path) not in line and ".pyc" not in line] == []


@pytest.mark.e2e
def test_a_sink_ends_with_its_parent_and_sends_the_last_lines(home: Path, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "wandb")
    spec.save(tmp_path / "spec.json")
    parent = f"""
import pathlib, time
from nanochat_core.config.job import JobSpec
from tasks.tracking import tracking
spec = JobSpec.load(pathlib.Path({str(tmp_path / "spec.json")!r}))
with tracking(spec, print):
    pathlib.Path(spec.work_folder, "metrics.jsonl").write_text('{{"step": 3, "a": 1}}\\n')
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        wait_until(lambda: bool(wandb_files(home)) or process.poll() is not None, 30)
        assert marked(spec)
        process.kill()
    wait_until(lambda: not marked(spec), 30)
    (folder,) = wandb_folders(home)
    assert folder.rows == {3: {"a": 1}}


@pytest.mark.e2e
def test_a_sink_that_hangs_is_killed_with_all_it_started(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.tracking.FINISH_SECONDS", 0.2)
    monkeypatch.setattr("tasks.tracking.START_AND_END_SECONDS", 0.2)
    spec, warnings = make_spec(tmp_path, "wandb"), list[str]()
    with tracking(spec, warnings.append):
        Path(spec.work_folder, "metrics.jsonl").write_text('{"step": 1, "a": 1}\n')
        wait_until(lambda: bool(wandb_files(home)), 30)
        for process in marked(spec):
            process.suspend()
    assert len(warnings) == 1
    assert "hung" in warnings[0]
    assert marked(spec) == []


@pytest.mark.e2e
def test_trouble_of_a_tracker_is_one_early_warning(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Online and without a key; nobody is asked for one.
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    spec, warnings = make_spec(tmp_path, "wandb"), list[str]()
    with tracking(spec, warnings.append) as sink:
        Path(spec.work_folder, "metrics.jsonl").write_text('{"step": 1, "a": 1}\n')
        wait_until(lambda: sink.look() or bool(warnings), 30)
    assert len(warnings) == 1
    assert "metrics.jsonl" in warnings[0]
    assert "key" in warnings[0]
    assert marked(spec) == []


def test_a_job_without_metrics_opens_no_run(home: Path, tmp_path: Path) -> None:
    spec, warnings = make_spec(tmp_path, "wandb"), list[str]()
    with tracking(spec, warnings.append):
        pass
    assert warnings == []
    assert wandb_files(home) == []
    assert Path(spec.work_folder, TRACKING_LOG).read_text() == ""


def test_no_tracker_no_process_and_no_file(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "none")
    with tracking(spec, pytest.fail):
        assert marked(spec) == []
    assert list(Path(spec.work_folder).iterdir()) == []


def test_the_sink_imports_no_orchestrator_no_torch_and_no_tracker_before_it_needs_one() -> None:
    heavy = {"prefect", "torch", "wandb", "trackio"}
    script = f"import sys, tasks.tracking; print({heavy!r} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == "set()"


def test_a_missing_package_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("none", "wandb", "trackio"):
        check_tracker(name)
    (tmp_path / "wandb").mkdir()  # as W&B leaves it in the current folder
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("wandb", "trackio"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError, match=r'pip install -c constraints.txt -e "\.\[track\]"'):
        check_tracker("wandb")
    with pytest.raises(ConfigError, match=r'"\.\[trackio\]"'):
        check_tracker("trackio")


def test_nothing_leaves_the_machine_unasked(tmp_path: Path) -> None:
    environ = {"TRACKIO_SPACE_ID": "someone/space", "WANDB_MODE": "online"}
    settle_environment("trackio", environ, tmp_path)
    settle_environment("wandb", environ, tmp_path)
    assert environ["WANDB_MODE"] == "online"
    assert "TRACKIO_SPACE_ID" not in environ
    unset: dict[str, str] = {}
    settle_environment("wandb", unset, tmp_path)
    assert unset["WANDB_MODE"] == "offline"


def line(step: int, **values: float) -> bytes:
    return json.dumps({"step": step, **values}).encode() + b"\n"


def test_lines_of_a_run_before_are_not_read_until_the_job_rewrites_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2))
    file = MetricsFile(path, path.stat().st_mtime_ns)
    assert file.new_lines() == []
    time.sleep(0.02)
    path.write_bytes(line(1))
    assert file.new_lines() == line(1).splitlines()


def test_whatever_is_cut_off_and_written_again_each_step_comes_once(tmp_path: Path) -> None:
    rng = random.Random(5)
    for _ in range(8):
        path, lines = tmp_path / "metrics.jsonl", [line(step) for step in range(1, 31)]
        path.write_bytes(b"")
        file, rows, seen, done = MetricsFile(path), StepRows(), list[int](), 0
        while done < len(lines):
            if rng.random() < 0.3:
                done = rng.randint(max(done - 6, 0), done)
            done += rng.randint(1, 4)
            unfinished = lines[done][:5] if done < len(lines) and rng.random() < 0.5 else b""
            path.write_bytes(b"".join(lines[:done]) + unfinished)
            if rng.random() < 0.7:
                seen += [step for step, _ in rows.complete(add_value(file.new_lines()))]
        seen += [step for step, _ in rows.complete(add_value(file.new_lines()))]
        seen += [step for step, _ in rows.rest()]
        assert seen == list(range(1, 31))


def add_value(lines: list[bytes]) -> list[bytes]:
    return [body.replace(b"}", b', "a": 1}') for body in lines]


def test_lines_of_one_step_are_joined_and_the_loss_has_the_name_of_the_reference() -> None:
    rows = StepRows()
    lines = [line(1, a=1), line(1, **{"val/bpb": 2.0}), b"no json", b"[]", b"{}", line(2, a=3)]
    assert list(rows.complete(lines)) == [(1, {"a": 1, "val/bpb": 2.0, "val_bpb": 2.0})]
    assert list(rows.rest()) == [(2, {"a": 3})]
    assert list(rows.rest()) == []
