"""Compiled code travels through a real store, and nothing that goes wrong with it stops a job."""

import io
import json
import logging
import os
import tarfile
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from flows.looking import artifact_lines, artifact_page, verify_lines
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import DamagedFileError, DeviceMemoryError, JobLostError
from tasks.kernel_archive import kernel_files, pack, unpack_missing
from tasks.kernel_cache import (
    ARCHIVE,
    IN_USE_SECONDS,
    KEPT_FOLDERS,
    STATION,
    kernel_folder,
    kernel_request,
    shared_kernels,
)
from tasks.kernel_key import KernelKey, code_hash, gpus, kernel_key, processor

EXECUTION = Execution(device="cpu")
KERNELS = {"ab/cabc.main.so": b"\x7fELF one", "fxgraph/xy/key/entry": b"graph"}


class Machine:
    """One cache folder, the store that it shares, and what it was told."""

    def __init__(self, name: str, store: ArtifactStore, root: Path) -> None:
        self.store, self.root = store, root / name
        self.told: list[tuple[int, str]] = []
        self.folder = kernel_folder(EXECUTION, self.root)

    def run(
        self,
        compiles: dict[str, bytes] | None = None,
        *,
        execution: Execution = EXECUTION,
        error: Exception | None = None,
    ) -> dict[str, bytes]:
        """A job that compiles some code and perhaps fails; returns what it found at its start."""
        with shared_kernels(self.store, execution, self.log, root=self.root):
            found = self.contents()
            for path, content in (compiles or {}).items():
                write_settled(self.folder / path, content)
            if error is not None:
                raise error
        return found

    def log(self, level: int, line: str) -> None:
        self.told.append((level, line))

    def contents(self) -> dict[str, bytes]:
        names = kernel_files(self.folder, settled_seconds=0.0)
        return {name: (self.folder / name).read_bytes() for name in names}

    @property
    def warnings(self) -> list[str]:
        return [line for level, line in self.told if level >= logging.WARNING]


def write_settled(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - 60, time.time() - 60))


@pytest.fixture(autouse=True)
def no_folder_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def first(store: ArtifactStore, tmp_path: Path) -> Machine:
    return Machine("first", store, tmp_path)


@pytest.fixture
def second(store: ArtifactStore, tmp_path: Path) -> Machine:
    return Machine("second", store, tmp_path)


def numbers(store: ArtifactStore) -> list[int]:
    return [ref.manifest for ref in store.list(STATION)]


def test_what_one_machine_has_compiled_another_one_finds(first: Machine, second: Machine) -> None:
    assert first.run(KERNELS) == {}
    assert second.run() == KERNELS
    assert first.warnings == second.warnings == []
    assert numbers(first.store) == [1]


def test_a_store_elsewhere_serves_as_well(tmp_path: Path) -> None:
    store = ArtifactStore(f"memory://{uuid4().hex}", cache_folder=tmp_path / "stores")
    Machine("first", store, tmp_path).run(KERNELS)
    assert Machine("second", store, tmp_path).run() == KERNELS


def test_what_a_killed_run_left_half_published_is_swept(first: Machine) -> None:
    first.run(KERNELS)
    folder = Path(first.store.url) / STATION / kernel_request(kernel_key("cpu")).fingerprint
    left = folder / "20260101T000000-0123456789ab"
    left.mkdir()
    (left / ARCHIVE).write_bytes(b"half")
    first.run()
    assert not left.exists()
    assert first.warnings == []


@pytest.mark.parametrize("change", [{"compile": False}, {"share_kernels": False}])
def test_nothing_is_shared_where_that_is_turned_off(
    first: Machine, second: Machine, change: dict[str, bool]
) -> None:
    execution = EXECUTION.model_copy(update=change)
    first.run(KERNELS, execution=execution)
    assert first.store.list() == []
    first.run(KERNELS)
    assert second.run(execution=execution) == {}


def test_a_folder_that_the_environment_names_is_left_alone(
    first: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    first.run(KERNELS)
    assert first.store.list() == []


def test_a_run_that_compiles_nothing_new_publishes_nothing(first: Machine, second: Machine) -> None:
    first.run(KERNELS)
    first.run()
    second.run(KERNELS)
    assert numbers(first.store) == [1]


def test_what_two_machines_have_compiled_adds_up(first: Machine, second: Machine) -> None:
    second.run(execution=EXECUTION.model_copy(update={"share_kernels": False}))
    write_settled(second.folder / "zz/other.so", b"other")
    first.run(KERNELS)
    assert second.run() == {**KERNELS, "zz/other.so": b"other"}
    assert numbers(first.store) == [2]
    assert first.run() == {**KERNELS, "zz/other.so": b"other"}
    assert numbers(first.store) == [2]


def test_the_commands_for_artifacts_know_kernels(first: Machine) -> None:
    first.run(KERNELS)
    (ref,) = first.store.list(STATION)
    assert any(ref.short in line for line in artifact_lines(first.store))
    assert verify_lines(first.store) == ([], 0)
    page = artifact_page(first.store.manifest(first.store.resolve(ref.short)))
    assert ARCHIVE in page
    assert kernel_key("cpu").compiler in page


def test_a_damaged_artifact_is_a_warning_and_is_made_again(
    first: Machine, second: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    first.run(KERNELS)
    path = first.store.materialize(first.store.list(STATION)[0]) / ARCHIVE
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert second.run(KERNELS) == {}
    assert numbers(first.store) == [2]
    assert "cannot be used" in caplog.text


def test_an_archive_that_is_none_is_a_warning(first: Machine, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(b"no archive")
    publish(first.store, tmp_path)
    assert first.run(KERNELS) == {}
    assert len(first.warnings) == 2, "before the job and after it"
    assert "costs only time" in first.warnings[0]


def publish(store: ArtifactStore, folder: Path) -> None:
    output = StageOutput(files={ARCHIVE: "result"})
    store.publish(kernel_request(kernel_key("cpu")), folder, output, replace=True)


def test_a_store_that_is_out_of_reach_costs_a_warning_and_no_job(first: Machine) -> None:
    Path(first.store.url).write_text("a file where the folder was")
    assert first.run(KERNELS) == {}
    assert first.warnings
    assert first.contents() == KERNELS


def test_a_job_that_is_lost_on_untried_kernels_compiles_anew(
    first: Machine, second: Machine
) -> None:
    first.run({"ab/bad.so": b"an instruction that the second one does not know"})
    with pytest.raises(JobLostError, match="killed"):
        second.run(error=JobLostError("killed"))
    assert second.run(KERNELS) == {}
    assert "compiled anew" in second.warnings[0]
    assert numbers(first.store) == [2]
    assert second.contents() == KERNELS


def test_a_job_that_is_lost_on_proven_kernels_keeps_them(first: Machine, second: Machine) -> None:
    first.run(KERNELS)
    second.run()
    for machine in (first, second):
        with pytest.raises(JobLostError):
            machine.run(error=JobLostError("killed"))
        assert machine.contents() == KERNELS


def test_a_job_that_ran_out_of_memory_says_nothing_about_its_kernels(
    first: Machine, second: Machine
) -> None:
    first.run(KERNELS)
    with pytest.raises(DeviceMemoryError):
        second.run(error=DeviceMemoryError("too large"))
    assert second.contents() == KERNELS


def test_a_job_that_fails_publishes_nothing(first: Machine) -> None:
    with pytest.raises(ValueError, match="no"):
        first.run(KERNELS, error=ValueError("no"))
    assert first.store.list() == []


def test_two_runs_at_once_share_one_folder(first: Machine, second: Machine) -> None:
    first.run({f"k{i:02d}/{i}.so": bytes([i]) * 1000 for i in range(60)})
    threads = [threading.Thread(target=second.run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert second.contents() == first.contents()
    assert second.warnings == []


def test_an_archive_depends_on_nothing_but_its_files(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        for path, content in KERNELS.items():
            write_settled(tmp_path / name / path, content)
        os.utime(tmp_path / name / "ab/cabc.main.so", (1, 1))
        pack(tmp_path / name, KERNELS, tmp_path / f"{name}.gz")
        digests.append((tmp_path / f"{name}.gz").read_bytes())
    assert digests[0] == digests[1]


def test_half_written_files_and_locks_do_not_travel(tmp_path: Path) -> None:
    for name in ("locks/a.lock", "ab/.tmp-1", "ab/x.123.tmp", "ab/whole.so"):
        write_settled(tmp_path / name, b"x")
    (tmp_path / "ab" / "young.so").write_bytes(b"x")
    (tmp_path / "ab" / "link.so").symlink_to("/etc/hostname")
    assert list(kernel_files(tmp_path)) == ["ab/whole.so"]


def hostile_archive(folder: Path, member: tarfile.TarInfo) -> Path:
    path = folder / "hostile.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../b"])
def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = 1
    with pytest.raises(DamagedFileError, match="outside"):
        unpack_missing(hostile_archive(tmp_path, member), tmp_path / "in" / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"hostile.tar.gz"}


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(DamagedFileError, match="not a plain file"):
        unpack_missing(hostile_archive(tmp_path, member), tmp_path / "folder")


def test_an_archive_that_is_too_large_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("large")
    member.size = 1001
    archive = hostile_archive(tmp_path, member)
    with pytest.raises(DamagedFileError, match="over 1,000 bytes"):
        unpack_missing(archive, tmp_path / "folder", max_bytes=1000)


def test_only_the_folders_used_last_stay(tmp_path: Path) -> None:
    long_ago = time.time() - 2 * IN_USE_SECONDS
    for i in range(KEPT_FOLDERS + 2):
        (tmp_path / f"old{i}").mkdir()
        os.utime(tmp_path / f"old{i}", (long_ago + i, long_ago + i))
    (tmp_path / "busy").mkdir()
    mine = kernel_folder(EXECUTION, tmp_path).name
    assert {path.name for path in tmp_path.iterdir()} == {mine, "busy", f"old{KEPT_FOLDERS + 1}"}


def test_folders_in_use_stay_however_many(tmp_path: Path) -> None:
    names = {f"busy{i}" for i in range(KEPT_FOLDERS + 2)}
    for name in names:
        (tmp_path / name).mkdir()
    kernel_folder(EXECUTION, tmp_path)
    assert names < {path.name for path in tmp_path.iterdir()}


def test_another_line_of_model_code_is_another_key(tmp_path: Path) -> None:
    for part in ("model", "optim", "training", "data"):
        write_settled(tmp_path / part / "code.py", b"x = 1\n")
    before = code_hash(tmp_path)
    write_settled(tmp_path / "data" / "code.py", b"x = 2\n")
    assert code_hash(tmp_path) == before
    write_settled(tmp_path / "optim" / "code.py", b"x = 2\n")
    assert code_hash(tmp_path) != before


def test_another_gpu_or_driver_is_another_key(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Card 7, 9.0, 580.1'\necho 'Card 7, 9.0, 580.1'\n")
    program.chmod(0o755)
    assert gpus((str(program),)) == "Card 7, 9.0, 580.1"
    assert gpus((str(tmp_path / "absent"),)) == ""


def test_a_processor_with_other_abilities_is_another_key(tmp_path: Path) -> None:
    for name, line in (("x86", "flags\t\t: sse avx"), ("arm", "Features\t: asimd")):
        (tmp_path / name).write_text(f"processor : 0\n{line}\n\nprocessor : 1\n{line}\n")
    (tmp_path / "same").write_text("flags : avx sse\n")
    found = {name: processor(tmp_path / name) for name in ("x86", "arm", "same")}
    assert found["x86"] == found["same"] != found["arm"]


def test_every_part_of_the_key_counts() -> None:
    key = kernel_key("cpu")
    shorts = {key.model_copy(update={name: "other"}).short for name in KernelKey.model_fields} | {
        key.short
    }
    assert len(shorts) == len(KernelKey.model_fields) + 1
    assert json.loads(key.model_dump_json()) == kernel_request(key).recipe
