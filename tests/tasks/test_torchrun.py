"""Following a job and reading its end; the jobs are small scripts under the real supervisor."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nanochat_core import supervise
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import JobSpec, StageOutput
from nanochat_core.errors import (
    BatchSizeError,
    JobError,
    JobLostError,
    JobStoppedError,
    StoreUnavailableError,
)
from tasks.torchrun import (
    LOG_EVERY_LINES,
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
    assert environment["TORCHINDUCTOR_CACHE_DIR"].endswith("inductor")


def test_torchrun_gets_the_ranks_and_the_whole_grace(spec: JobSpec) -> None:
    command = torchrun_command(spec, "2.14.0+cpu")
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[command.index("--shutdown-timeout") + 1] == "5"
    assert "--shutdown-timeout" not in torchrun_command(spec, "2.11.0")


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
