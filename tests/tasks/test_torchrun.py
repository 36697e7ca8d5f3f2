"""Following a job and reading its end; the jobs are small scripts under the real supervisor."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nanochat_core import supervise
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import JobSpec, StageOutput
from nanochat_core.errors import (
    BatchSizeError,
    DeviceMemoryError,
    JobError,
    JobLostError,
    JobStoppedError,
    LeaseLostError,
    RanksLostError,
    StoreUnavailableError,
)
from tasks.torchrun import (
    LOG_EVERY_LINES,
    MEMORY_RELAUNCHES,
    LogTail,
    job_environment,
    outcome,
    run_supervised,
    torchrun_command,
    written_error,
)


class Heard:
    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self.done: list[int] = []

    def progress(self, done: int, total: int, unit: str, message: str) -> None:
        self.done.append(done)

    def log(self, level: int, line: str) -> None:
        self.lines.append((level, line))


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    for name in ("work", "output"):
        (tmp_path / name).mkdir()
    return JobSpec(
        station="pretrain",
        recipe={},
        execution=Execution(threads=3, ranks=2, grace_seconds=5.0),
        inputs={},
        work_folder=str(tmp_path / "work"),
        output_folder=str(tmp_path / "output"),
    )


def run(spec: JobSpec, script: str) -> tuple[StageOutput, Heard]:
    heard = Heard()
    command = [sys.executable, "-c", script, spec.output_folder]
    return run_supervised(command, spec, report=heard), heard


FINISH = """
import pathlib, sys
(pathlib.Path(sys.argv[1]) / "outputs.json").write_text('{"files": {"a": "result"}}')
"""


def test_a_job_that_ends_well_hands_over_its_outputs(spec: JobSpec) -> None:
    output, _ = run(spec, "print('all is well')" + FINISH)
    assert output.files == {"a": "result", "job.log": "record"}
    assert "all is well" in Path(spec.output_folder, "job.log").read_text()


def test_warnings_are_all_passed_on_and_plain_lines_thinned(spec: JobSpec) -> None:
    output, heard = run(
        spec, "for i in range(30): print('line', i)\nprint('12:00 WARNING x: y')" + FINISH
    )
    assert heard.lines == [
        (logging.INFO, "line 0"),
        (logging.INFO, f"line {LOG_EVERY_LINES}"),
        (logging.WARNING, "12:00 WARNING x: y"),
    ]
    assert output.files


def test_progress_is_passed_on(spec: JobSpec) -> None:
    progress = json.dumps({"done": 3, "total": 9, "unit": "steps", "message": ""})
    _, heard = run(spec, f"open('progress.json', 'w').write({progress!r})" + FINISH)
    assert heard.done == [3]


def test_an_error_that_the_job_wrote_down_comes_back_as_itself(spec: JobSpec) -> None:
    body = json.dumps({"type": "BatchSizeError", "message": "8 does not divide 12"})
    with pytest.raises(BatchSizeError, match="8 does not divide 12"):
        run(spec, f"open('error.json', 'w').write({body!r}); raise SystemExit(1)")


def test_a_written_error_of_no_known_class_is_still_an_error(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    path.write_text('{"type": "Path", "message": "m"}')
    assert type(written_error(path)) is JobError


def test_an_error_file_of_an_earlier_attempt_is_forgotten(spec: JobSpec) -> None:
    Path(spec.work_folder, "error.json").write_text('{"type": "ConfigError", "message": "old"}')
    assert run(spec, FINISH)[0].files


SAVES_WHEN_STOPPED = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""


def test_a_watch_that_raises_stops_the_job_which_saves(spec: JobSpec) -> None:
    work = Path(spec.work_folder)

    def watch() -> None:
        if (work / "ready").exists():
            raise LeaseLostError("another host goes on")

    command = [sys.executable, "-c", SAVES_WHEN_STOPPED]
    with pytest.raises(LeaseLostError, match="another host goes on"):
        run_supervised(command, spec, report=Heard(), watch=watch)
    assert (work / "saved").exists()
    assert supervise.marked_processes(str(work.resolve())) == []


@pytest.mark.parametrize("script", ["print('so sad'); raise SystemExit(1)", "print('so sad')"])
def test_a_job_that_ends_without_a_reason_is_lost_and_shows_its_last_lines(
    spec: JobSpec, script: str
) -> None:
    with pytest.raises(JobLostError, match="so sad"):
        run(spec, script)


def test_what_torchrun_says_about_a_death_does_not_hide_its_reason(spec: JobSpec) -> None:
    said = "E1122 1 torch/distributed/elastic/multiprocessing/api.py:1] failed (exitcode: 1) x"
    script = f"print('the reason'); print({said!r}); print('chatter\\n' * 40); raise SystemExit(1)"
    with pytest.raises(JobLostError, match=r"the reason\n.*exitcode: 1\) x$"):
        run(spec, script)


def test_a_full_disk_is_told_as_such(spec: JobSpec) -> None:
    with pytest.raises(StoreUnavailableError, match="free some space"):
        run(spec, "raise OSError(28, 'No space left on device')")


def test_a_stop_by_another_hand_is_no_loss(spec: JobSpec) -> None:
    with pytest.raises(JobStoppedError, match="run again to continue"):
        outcome(spec, supervise.STOPPED_EXIT_CODE)


TOO_LARGE = """
import json, pathlib, sys
batch = pathlib.Path("batch")
rows = int(batch.read_text()) if batch.exists() else 64
print("trying", rows)
if rows > int(sys.argv[2]):
    batch.write_text(str(rows // 2))
    told = {"type": "DeviceMemoryError", "message": f"{rows} rows are too many"}
    pathlib.Path("error.json").write_text(json.dumps(told))
    sys.exit(2)
"""


@pytest.mark.e2e
def test_a_job_that_is_too_large_for_its_device_is_started_again_until_it_fits(
    spec: JobSpec,
) -> None:
    heard, starts = Heard(), []

    @contextmanager
    def launch() -> Iterator[None]:
        starts.append(time.monotonic())
        yield

    command = [sys.executable, "-c", TOO_LARGE + FINISH, spec.output_folder, "16"]
    run_supervised(command, spec, report=heard, launch=launch)
    log = Path(spec.work_folder, "job.log").read_text()
    assert log.split("trying ")[1:] == ["64\n", "32\n", "16\n"]
    assert len(starts) == 3
    warnings = [line for level, line in heard.lines if level == logging.WARNING]
    assert warnings == [f"{rows} rows are too many; pretrain is started again" for rows in (64, 32)]


@pytest.mark.e2e
def test_a_job_that_never_fits_is_not_started_for_ever(spec: JobSpec) -> None:
    command = [sys.executable, "-c", TOO_LARGE, spec.output_folder, "-1"]
    with pytest.raises(DeviceMemoryError, match="0 rows are too many"):
        run_supervised(command, spec, report=Heard())
    log = Path(spec.work_folder, "job.log").read_text()
    assert log.count("trying") == MEMORY_RELAUNCHES + 1


WATCHDOG = (
    "[rank1]:[E1218 20:27:21.433063423 ProcessGroupNCCL.cpp:629] [Rank 1] Watchdog caught "
    "collective operation timeout: WorkNCCL(SeqNum=1, OpType=BROADCAST, NumelIn=131072000, "
    "NumelOut=131072000, Timeout(ms)=600000) ran for 600088 milliseconds before timing out."
)
TOO_FEW = "torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError"


@pytest.mark.parametrize("line", [WATCHDOG, TOO_FEW])
def test_what_nccl_and_torchrun_say_about_lost_ranks_is_understood(
    spec: JobSpec, line: str
) -> None:
    chatter = "print('frame #1: c10d::Watchdog\\n' * 40)"
    with pytest.raises(RanksLostError, match="a rank or a machine is lost") as caught:
        run(spec, f"print({line!r}); {chatter}; raise SystemExit(1)")
    assert line in str(caught.value)
    assert "600 s (collective_timeout_seconds)" in str(caught.value)


def test_what_an_earlier_start_said_about_lost_ranks_is_forgotten(spec: JobSpec) -> None:
    Path(spec.work_folder, "job.log").write_text(f"{WATCHDOG}\n")
    with pytest.raises(JobLostError, match="so sad") as caught:
        run(spec, "print('so sad'); raise SystemExit(1)")
    assert type(caught.value) is JobLostError
    assert "Watchdog" not in str(caught.value)


def test_what_hangs_on_after_an_error_was_told_gets_the_grace_and_no_more(spec: JobSpec) -> None:
    short = spec.model_copy(
        update={"execution": spec.execution.model_copy(update={"grace_seconds": 0.2})}
    )
    body = json.dumps({"type": "RanksLostError", "message": "rank 0 has lost another rank"})
    hang = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    tell = f"open('error.json', 'w').write({body!r})"
    with pytest.raises(RanksLostError, match="has lost another rank; the last lines"):
        run(short, f"{hang}; {tell}; time.sleep(60)")
    assert supervise.marked_processes(str(Path(spec.work_folder).resolve())) == []


def test_ranks_that_hang_on_after_nccl_has_ended_one_get_the_grace_and_no_more(
    spec: JobSpec,
) -> None:
    short = spec.model_copy(
        update={"execution": spec.execution.model_copy(update={"grace_seconds": 0.2})}
    )
    hang = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    with pytest.raises(RanksLostError, match="Watchdog caught"):
        run(short, f"{hang}; print({WATCHDOG!r}, flush=True); time.sleep(60)")
    # This is how the launchers on other machines hear of it.
    assert (Path(spec.work_folder) / "error.json").exists()


def test_a_stop_on_another_machine_is_a_stop_here(spec: JobSpec) -> None:
    body = json.dumps({"type": "JobStoppedError", "message": "stopped on request after step 3"})
    with pytest.raises(JobStoppedError, match="run again to continue"):
        run(spec, f"open('error.json', 'w').write({body!r}); raise SystemExit(1)")


@pytest.mark.parametrize("exit_code", [128 + signal.SIGKILL, -signal.SIGKILL])
def test_ranks_that_stop_because_their_launcher_was_killed_are_a_lost_job(
    spec: JobSpec, exit_code: int
) -> None:
    body = json.dumps({"type": "JobStoppedError", "message": "stopped on request after step 3"})
    Path(spec.work_folder, "error.json").write_text(body)
    with pytest.raises(JobLostError):
        outcome(spec, exit_code)


def test_a_lost_rank_is_no_news_when_the_job_was_asked_to_stop(spec: JobSpec) -> None:
    body = json.dumps({"type": "RanksLostError", "message": "killed after the grace"})
    Path(spec.work_folder, "error.json").write_text(body)
    with pytest.raises(JobStoppedError, match="run again to continue"):
        outcome(spec, supervise.STOPPED_EXIT_CODE)


@pytest.mark.e2e
def test_a_tracker_that_fails_is_one_warning_and_never_an_error_of_the_job(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    execution = spec.execution.model_copy(update={"tracker": "wandb"})
    write = 'import time; open("metrics.jsonl", "w").write(\'{"step": 1, "a": 2}\\n\')'
    tracked = spec.model_copy(update={"execution": execution})
    output, heard = run(tracked, f"{write}; time.sleep(0.5)" + FINISH)
    assert output.files == {"a": "result", "job.log": "record"}
    ((level, line),) = heard.lines
    assert level == logging.WARNING
    assert "wandb does not get" in line


SAVE_ON_SIGTERM = """
import signal, sys, time
def save(*_):
    open("saved", "w").close()
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
open("ready", "w").close()
time.sleep(60)
"""


def test_an_interrupt_lets_the_job_save_before_it_goes_on(spec: JobSpec) -> None:
    work = Path(spec.work_folder)

    def interrupt_when_ready() -> None:
        while not (work / "ready").exists():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt_when_ready)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(spec, SAVE_ON_SIGTERM)
    thread.join()
    assert (work / "saved").exists()
    assert supervise.marked_processes(str(work)) == []


def test_what_an_earlier_run_left_is_ended_before_a_new_job_starts(spec: JobSpec) -> None:
    work = Path(spec.work_folder)
    left = subprocess.Popen(
        [sys.executable, "-c", SAVE_ON_SIGTERM],
        cwd=work,
        env={**job_environment(spec), supervise.JOB_MARK: str(work.resolve())},
    )
    while not (work / "ready").exists():
        time.sleep(0.01)
    run(spec, FINISH)
    assert left.wait(1) == 1
    assert (work / "saved").exists()


def test_the_threads_and_the_compile_cache_are_set(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever compiled in this process before has set the variable.
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    environment = job_environment(spec)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert Path(environment["TORCHINDUCTOR_CACHE_DIR"]).parent.name == "inductor"


def test_torchrun_gets_the_ranks_and_the_whole_grace(spec: JobSpec) -> None:
    command = torchrun_command(spec, "2.14.0+cpu")
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[command.index("--shutdown-timeout") + 1] == "5"
    assert "--shutdown-timeout" not in torchrun_command(spec, "2.11.0")
    assert "--standalone" in command


def options(command: list[str]) -> dict[str, str]:
    """What torchrun's own parser makes of a command line."""
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args([*command[3:], "-m", "module", "job.json"])
    return vars(arguments)


@pytest.mark.distributed
def test_torchrun_of_several_machines_gets_their_meeting_place(spec: JobSpec) -> None:
    meeting = {"nodes": 3, "rendezvous_endpoint": "node01:29500", "rendezvous_id": "night"}
    execution = spec.execution.model_copy(update=meeting)
    several = spec.model_copy(update={"execution": execution})
    first, other = (options(torchrun_command(several, joins=joins)) for joins in (False, True))
    for taken in (first, other):
        assert not taken["standalone"]
        assert (taken["nnodes"], taken["nproc_per_node"]) == ("3", "2")
        assert (taken["rdzv_backend"], taken["rdzv_id"]) == ("c10d", "night")
        assert taken["rdzv_endpoint"] == "node01:29500"
        assert taken["shutdown_timeout"] == 5
    assert (first["rdzv_conf"], other["rdzv_conf"]) == ("is_host=true", "is_host=false")
    # torchrun numbers machines in the order of these.
    assert first["local_addr"] == "node01"
    assert first["local_addr"] < other["local_addr"]


def test_a_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    tail = LogTail(path)
    with path.open("ab") as file:
        file.write(b"one\ntw")
        file.flush()
        assert tail.new_lines() == ["one"]
        file.write(b"o\n")
    assert tail.new_lines() == ["two"]
