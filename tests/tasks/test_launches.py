"""What the first machine of a job tells the others, and what those do about it."""

import os
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from nanochat_core.config.execution import Execution
from nanochat_core.config.job import ERROR_FILE, JobSpec
from nanochat_core.errors import (
    ConfigError,
    DeviceMemoryError,
    JobLostError,
    JobStoppedError,
    RanksLostError,
)
from tasks.joining import Joining
from tasks.launches import (
    DONE,
    JOB_FILE,
    LAUNCH_FILE,
    SPARE_SECONDS,
    Launch,
    announced,
    check_nodes,
    ended_as,
    find_launches,
    rendezvous_host,
)
from tasks.torchrun import run_job

MEETING = {"nodes": 2, "rendezvous_endpoint": "node01:29500", "rendezvous_id": "night-1"}


class Silent:
    def progress(self, done: int, total: int, unit: str, message: str) -> None:
        """Not looked at."""

    def log(self, level: int, line: str) -> None:
        """Not looked at."""


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    for name in ("work", "output"):
        (tmp_path / name).mkdir()
    return JobSpec(
        station="pretrain",
        recipe={},
        execution=Execution(**MEETING),
        inputs={},
        work_folder=str(tmp_path / "work"),
        output_folder=str(tmp_path / "output"),
    )


def launched(spec: JobSpec) -> Launch:
    launch = Launch.of(Path(spec.work_folder))
    assert launch is not None
    return launch


@pytest.mark.parametrize(
    "change",
    [
        {"rendezvous_endpoint": ""},
        {"rendezvous_endpoint": "node01"},
        {"rendezvous_endpoint": "node01:0"},
        {"rendezvous_endpoint": "node01:70000"},
        {"rendezvous_endpoint": "http://node01:29500"},
    ],
)
def test_machines_without_a_meeting_place_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"pretrain.nodes=2 .*expected host:port"):
        check_nodes("pretrain", Execution(**{**MEETING, **change}))


@pytest.mark.parametrize("name", ["", "two words", "a/b"])
def test_machines_without_a_name_for_their_run_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"rendezvous_id=.*expected a name"):
        check_nodes("sft", Execution(**{**MEETING, "rendezvous_id": name}))


def test_a_refusal_comes_before_anything_is_started(spec: JobSpec) -> None:
    alone = spec.model_copy(update={"execution": Execution(nodes=2)})
    with pytest.raises(ConfigError, match="rendezvous_endpoint"):
        run_job("nanochat_core.jobs.pretrain", alone, report=Silent())
    assert list(Path(spec.work_folder).iterdir()) == []


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [("node01:29500", "node01"), ("10.0.0.7:1", "10.0.0.7"), ("[fd00::7]:29500", "fd00::7")],
)
def test_the_first_machine_is_called_as_in_the_endpoint(endpoint: str, host: str) -> None:
    execution = Execution(**{**MEETING, "rendezvous_endpoint": endpoint})
    check_nodes("pretrain", execution)
    assert rendezvous_host(execution) == host


def test_one_machine_needs_and_tells_nothing(spec: JobSpec) -> None:
    alone = spec.model_copy(update={"execution": Execution()})
    check_nodes("pretrain", alone.execution)
    with announced(alone, "module"):
        assert Launch.of(Path(spec.work_folder)) is None


def test_every_start_has_a_higher_number_and_an_end(spec: JobSpec) -> None:
    with announced(spec, "module"):
        running = launched(spec)
    assert (running.number, running.ended, running.rendezvous_id) == (1, "", "night-1")
    assert launched(spec).ended == DONE
    with pytest.raises(RanksLostError), announced(spec, "module"):
        raise RanksLostError("rank 1 is gone")
    assert (launched(spec).number, launched(spec).ended) == (2, "RanksLostError")


def test_an_old_error_is_gone_before_others_hear_of_a_start(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, at_save = Path(spec.work_folder), []
    (work / ERROR_FILE).write_text("{}")
    save = Launch.save

    def watched(launch: Launch, folder: Path) -> None:
        at_save.append((work / ERROR_FILE).exists())
        save(launch, folder)

    monkeypatch.setattr(Launch, "save", watched)
    with announced(spec, "module"):
        assert at_save == [False]


def test_a_start_waits_for_what_a_lost_one_left_on_other_machines(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tasks.launches.time.sleep", waits.append)
    with announced(spec, "module"):
        pass
    with pytest.raises(DeviceMemoryError), announced(spec, "module"):
        raise DeviceMemoryError("64 rows")
    assert waits == [], "after a job that is done nothing is left"
    said: list[str] = []
    with announced(spec, "module", said.append):
        pass
    assert said == [
        f"waiting {waits[0]:.0f} s for ranks of the last start to end on the other machines"
    ]
    grace = spec.execution.grace_seconds
    assert grace < waits[0] <= 2 * grace + SPARE_SECONDS
    long_ago = time.time() - 3600
    launched(spec).model_copy(update={"ended": "RanksLostError"}).save(Path(spec.work_folder))
    os.utime(Path(spec.work_folder, LAUNCH_FILE), (long_ago, long_ago))
    with announced(spec, "module"):
        assert waits[1] == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DeviceMemoryError("64 rows"), DeviceMemoryError),
        (ConfigError("no"), ConfigError),
        (KeyboardInterrupt(), JobStoppedError),
    ],
)
def test_the_other_machines_hear_which_error_it_was(
    spec: JobSpec, error: BaseException, kind: type[Exception]
) -> None:
    with pytest.raises(type(error)), announced(spec, "module"):
        raise error
    heard = ended_as(launched(spec))
    assert type(heard) is kind
    assert str(error) in str(heard)


@pytest.mark.parametrize("folder", ["", "work", "pretrain/d4/work", "inprogress/p/fp/1/work"])
def test_a_job_is_found_below_a_folder_by_its_id(tmp_path: Path, folder: str) -> None:
    work = tmp_path / folder
    work.mkdir(parents=True, exist_ok=True)
    launch = Launch(number=1, module="m", rendezvous_id="night-1", torch="2")
    launch.save(work)
    assert find_launches(tmp_path, "night-1") == {work: launch}
    assert find_launches(tmp_path, "night-2") == {}
    assert find_launches(work / JOB_FILE) == {work: launch}
    assert [path.name for path in work.iterdir() if path.is_file()] == [LAUNCH_FILE]


def test_a_folder_needs_an_id_lest_any_job_of_it_is_joined(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--rdzv-id"):
        Joining(tmp_path, "", wait_seconds=1, report=Silent())


@pytest.mark.parametrize("ended", ["", DONE, "JobStoppedError"])
def test_who_joins_waits_for_a_new_start_and_says_if_there_is_none(
    spec: JobSpec, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Path(spec.work_folder)
    if ended:
        old = Launch(number=3, module="m", rendezvous_id="night-1", torch="2", ended=ended)
        old.save(work)
    with pytest.raises(ConfigError, match=r"nobody has launched .* within 0.1 s"):
        Joining(work / JOB_FILE, "", wait_seconds=0.1, report=Silent()).run()


@pytest.mark.parametrize("lacks", ["files", "torch"])
def test_a_machine_that_cannot_take_part_says_why(spec: JobSpec, lacks: str) -> None:
    inputs = {"tokens": "/not/mounted/here"} if lacks == "files" else {}
    work = Path(spec.work_folder)
    spec.model_copy(update={"inputs": inputs}).save(work / JOB_FILE)
    Launch(number=1, module="m", rendezvous_id="night-1", torch="0.1").save(work)
    match = "does not see /not/mounted/here" if lacks == "files" else "runs torch 0.1"
    with pytest.raises(ConfigError, match=match):
        Joining(work / JOB_FILE, "night-1", wait_seconds=1, report=Silent()).run()


def test_a_first_machine_that_says_nothing_more_is_a_lost_job(spec: JobSpec) -> None:
    work = Path(spec.work_folder)
    joining = Joining(work / JOB_FILE, "", wait_seconds=1, report=Silent())
    launch = Launch(number=1, module="m", rendezvous_id="night-1", torch="2")
    launch.model_copy(update={"ended": "RanksLostError", "message": "gone"}).save(work)
    joining._served[work] = 1
    assert isinstance(joining._end_of(work), RanksLostError)
    launch.model_copy(update={"number": 2}).save(work)
    assert type(joining._end_of(work)) is JobLostError
    launch.model_copy(update={"number": 2, "ended": "ConfigError"}).save(work)
    with pytest.raises(ConfigError, match="on the first machine"):
        joining._end_of(work)


def test_who_joined_and_is_stopped_ends_after_the_first_machine(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Path(spec.work_folder)
    spec.save(work / JOB_FILE)
    launch = Launch(number=1, module="m", rendezvous_id="night-1", torch=version("torch"))
    launch.save(work)
    ended = launch.model_copy(update={"ended": "JobStoppedError"})

    def stopped(*_: object, **__: object) -> int:
        # Rank 0 of the first machine still completes the checkpoint.
        threading.Timer(0.1, ended.save, [work]).start()
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.joining.supervised", stopped)
    monkeypatch.setattr("tasks.joining.LOOK_SECONDS", 0.01)
    with pytest.raises(KeyboardInterrupt):
        Joining(work / JOB_FILE, "night-1", wait_seconds=1, report=Silent()).run()
    assert launched(spec).ended == "JobStoppedError"


def test_a_job_whose_folder_was_cleared_is_joined_again(spec: JobSpec) -> None:
    """As when an evaluation is repeated, or a run by hand with --overwrite."""
    work = Path(spec.work_folder)
    joining = Joining(work.parent, "night-1", wait_seconds=0.1, report=Silent())
    launch = Launch(number=1, module="m", rendezvous_id="night-1", torch="2")
    launch.save(work)
    assert joining._next_launch() == work
    launch.model_copy(update={"ended": DONE}).save(work)
    assert joining._end_of(work) is None
    (work / LAUNCH_FILE).unlink()
    launch.save(work)
    assert joining._next_launch() == work
