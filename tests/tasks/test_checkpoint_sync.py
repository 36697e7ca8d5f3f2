"""Step checkpoints on their way into a store elsewhere and out of it: manifests last."""

import logging
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from counting_trainer import (
    PLACE,
    CountingTrainer,
    numbers,
    read_step,
    state_after,
    steps_in_store,
)

from nanochat_core.artifacts.filesystems import Files, MemoryFiles
from nanochat_core.artifacts.leases import Lease
from nanochat_core.artifacts.sealed import seal
from nanochat_core.errors import LeaseLostError, StoreUnavailableError
from nanochat_core.training import checkpoint_files
from tasks import checkpoint_sync, stored_work
from tasks.checkpoint_sync import CheckpointSync
from tasks.stored_work import StoredWork, whole_steps


def nothing() -> None:
    pass


@pytest.fixture
def files() -> Files:
    return MemoryFiles(f"memory://{uuid4().hex}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_sync, "LOOK_SECONDS", 0.02)


def host(files: Files, folder: Path, name: str, lease: Lease | None = None) -> StoredWork:
    """The work folder of one host and its copy in the store."""
    work = folder / name / "work"
    work.mkdir(parents=True, exist_ok=True)
    return StoredWork(files, PLACE, work, lease or Lease())


def train(stored: StoredWork, num_steps: int) -> CountingTrainer:
    trainer = CountingTrainer(stored.work, 0.0)
    trainer.train(num_steps)
    return trainer


def upload_all(stored: StoredWork) -> None:
    for step in stored.missing():
        stored.upload(step, nothing)


def test_names_are_those_of_the_trainer() -> None:
    """They are told again where torch must not be imported."""
    assert stored_work.STEP_FOLDER.pattern == checkpoint_files.FOLDER_PATTERN.pattern
    assert stored_work.MANIFEST == checkpoint_files.MANIFEST
    assert stored_work.BEST == checkpoint_files.BEST


def test_another_host_goes_on_from_the_newest_step(files: Files, tmp_path: Path) -> None:
    first, second = host(files, tmp_path, "a"), host(files, tmp_path, "b")
    train(first, 7)
    (first.work / "rollouts").mkdir()
    (first.work / "rollouts" / "step-1.parquet").write_bytes(b"replies")
    for name in ("job.json", "error.json", "progress.json", ".hidden", "x.tmp"):
        (first.work / name).write_text("of this start only")
    upload_all(first)
    files.write(f"{PLACE}/not:a:name", b"which no system could keep")
    assert second.fetch() == 7
    assert sorted(path.name for path in second.work.iterdir()) == [
        *("checkpoints", "metrics.jsonl", "rollouts")
    ]
    assert (second.work / "metrics.jsonl").read_text() == '{"step": 7}\n'
    assert files.read(f"{PLACE}/job.json"), "by which gc knows the inputs that are still needed"
    trainer = train(second, 9)
    assert (trainer.started_at, trainer.state) == (7, state_after(9))


def test_the_best_step_comes_along(files: Files, tmp_path: Path) -> None:
    first, second = host(files, tmp_path, "a"), host(files, tmp_path, "b")
    train(first, 8)
    upload_all(first)
    assert numbers(steps_in_store(files)) == [5, 8]
    second.fetch()
    assert [read_step(path)[0] for path in whole_steps(second.checkpoints)] == [8, 5]


def test_the_store_keeps_what_the_folder_keeps(files: Files, tmp_path: Path) -> None:
    first = host(files, tmp_path, "a")
    for step in range(1, 9):
        train(first, step)
        upload_all(first)
    assert numbers(steps_in_store(files)) == [5, 7, 8]
    second = host(files, tmp_path, "b")
    second.fetch()
    train(second, 9)
    upload_all(second)
    assert numbers(steps_in_store(files)) == [5, 8, 9]
    assert second.missing() == []


def test_nothing_is_fetched_over_what_is_as_new(files: Files, tmp_path: Path) -> None:
    first, second = host(files, tmp_path, "a"), host(files, tmp_path, "b")
    train(first, 3)
    upload_all(first)
    train(second, 3)
    assert second.fetch() is None
    assert second.missing() == whole_steps(second.checkpoints)[:1]


def test_a_damaged_step_in_the_store_is_passed_over(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = host(files, tmp_path, "a"), host(files, tmp_path, "b")
    for step in (1, 2):
        train(first, step)
        upload_all(first)
    newest = whole_steps(first.checkpoints)[0].name
    path = f"{PLACE}/checkpoints/{newest}/rank-000-of-001.safetensors"
    files.write(path, files.read(path)[:-1] + b"?")
    assert second.fetch() == 1
    assert "step 2 in the store cannot be resumed" in caplog.text
    assert not (second.checkpoints / newest).exists()
    train(second, 2)
    upload_all(second)
    assert newest not in steps_in_store(files)
    assert host(files, tmp_path, "c").fetch() == 2


@pytest.mark.parametrize("path", ["../../escape", "/etc/x"])
def test_a_manifest_names_no_files_outside_of_its_folder(
    files: Files, tmp_path: Path, path: str
) -> None:
    record = {"path": path, "bytes": 1, "sha256": "0" * 64}
    there = f"{PLACE}/checkpoints/step-00000001-00000000/manifest.json"
    files.write(there, seal({"files": [record]}))
    assert host(files, tmp_path, "a").fetch() is None


def test_a_step_that_is_damaged_here_is_not_uploaded(files: Files, tmp_path: Path) -> None:
    first = host(files, tmp_path, "a")
    train(first, 1)
    (step,) = whole_steps(first.checkpoints)
    (step / "metrics.jsonl").write_text("something else")
    said: list[str] = []
    with CheckpointSync(first, lambda _level, line: said.append(line)).running():
        time.sleep(0.3)
    assert steps_in_store(files) == []
    assert len([line for line in said if "cannot be uploaded" in line]) == 1


class Lost(Lease):
    """A lease that another host takes after so many questions."""

    def confirm(self) -> None:
        raise LeaseLostError("taken over")


def test_who_has_lost_the_lease_makes_no_step_whole(files: Files, tmp_path: Path) -> None:
    first = host(files, tmp_path, "a", Lost())
    train(first, 2)
    with pytest.raises(LeaseLostError):
        upload_all(first)
    assert steps_in_store(files) == []
    assert host(files, tmp_path, "b").fetch() is None


def test_a_step_that_is_pruned_while_it_is_uploaded_arrives_all_the_same(
    files: Files, tmp_path: Path
) -> None:
    """Else an upload slower than training would never end."""
    first = host(files, tmp_path, "a")
    train(first, 1)
    (step,) = whole_steps(first.checkpoints)

    def prune() -> None:
        shutil.rmtree(step, ignore_errors=True)

    first.upload(step, prune)
    assert numbers(steps_in_store(files)) == [1]
    assert host(files, tmp_path, "b").fetch() == 1
    assert [path.name for path in first.work.parent.iterdir()] == ["work"]
    with pytest.raises(FileNotFoundError):
        first.upload(step, nothing)


def test_without_hard_links_a_step_is_uploaded_from_its_own_folder(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    first = host(files, tmp_path, "a")
    train(first, 1)
    monkeypatch.setattr(os, "link", no_links)
    upload_all(first)
    assert host(files, tmp_path, "b").fetch() == 1
    assert numbers([path.name for path in whole_steps(first.checkpoints)]) == [1]


def test_finished_steps_are_uploaded_while_the_job_runs(files: Files, tmp_path: Path) -> None:
    first = host(files, tmp_path, "a")
    sync = CheckpointSync(first, lambda _level, _line: None)
    sync.fetch()
    with sync.running():
        train(first, 3)
        deadline = time.monotonic() + 5
        while numbers(steps_in_store(files))[-1:] != [3]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_last_checkpoint_is_uploaded_before_a_stopped_task_ends(
    files: Files, tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_sync, "LOOK_SECONDS", 60.0)
    first = host(files, tmp_path, "a")
    train(first, 3)
    sync = CheckpointSync(first, lambda _level, _line: None)
    with pytest.raises(error), sync.running():
        raise error
    assert numbers(steps_in_store(files)) == [3]


def test_a_job_that_is_done_uploads_no_more(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_sync, "LOOK_SECONDS", 60.0)
    first = host(files, tmp_path, "a")
    with CheckpointSync(first, lambda _level, _line: None).running():
        train(first, 3)
    assert steps_in_store(files) == []


class Away(MemoryFiles):
    """A store elsewhere that can be away, or slow."""

    is_away = False
    seconds = 0.0

    def put(self, source: Path, path: str, *, share: bool) -> str:
        time.sleep(self.seconds)
        if self.is_away:
            raise ConnectionError("nobody there")
        return super().put(source, path, share=share)


def test_a_store_that_is_away_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Away(f"memory://{uuid4().hex}")
    files.is_away = True
    first = host(files, tmp_path, "a")
    said: list[tuple[int, str]] = []
    with CheckpointSync(first, lambda *line: said.append(line)).running():
        train(first, 2)
        time.sleep(0.2)
        assert [level for level, _ in said] == [logging.WARNING]
        assert "was not uploaded yet" in said[0][1]
        files.is_away = False
        deadline = time.monotonic() + 5
        while not steps_in_store(files):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_stop_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_sync, "STOP_SECONDS", 0.1)
    files = Away(f"memory://{uuid4().hex}")
    files.seconds = 0.3
    first = host(files, tmp_path, "a")
    said: list[str] = []
    train(first, 1)
    start = time.monotonic()
    sync = CheckpointSync(first, lambda _level, line: said.append(line))
    with pytest.raises(KeyboardInterrupt), sync.running():
        raise KeyboardInterrupt
    assert time.monotonic() - start < 0.3
    assert "is not in the store: only this machine can go on from there" in said[-1]
    for thread in threading.enumerate():
        if thread.name == "checkpoint-sync":
            thread.join()


def test_a_store_that_is_away_before_the_job_is_an_error(tmp_path: Path) -> None:
    """Training from nothing would cost more than another try."""

    class Gone(MemoryFiles):
        def infos(self, folder: str) -> dict[str, Any]:
            raise ConnectionError("nobody there")

    with pytest.raises(StoreUnavailableError):
        host(Gone(f"memory://{uuid4().hex}"), tmp_path, "a").fetch()
