"""Start a torchrun job under the supervisor, follow it, and turn its end into a value or an error.

A job's exit code does not survive torchrun, which ends with 1 whatever its ranks ended with. So a
mistake of the user is told by `error.json`, a stop on request by the supervisor, and the rest is
a lost job.
"""

import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from nanochat_core import errors, supervise
from nanochat_core.artifacts.location import user_cache_folder
from nanochat_core.config.job import (
    ERROR_FILE,
    LOG_FILE,
    OUTPUTS_FILE,
    PROGRESS_FILE,
    JobSpec,
    StageOutput,
)
from tasks.tracking import Sink, tracking

POLL_SECONDS = 0.2
LOG_EVERY_LINES = 25
"""Every so-manieth plain line is passed on; warnings all are. The whole log stays in its file."""
LAST_LINES = 15
_NOTEWORTHY = re.compile(
    # torchrun's own exceptions only repeat that a rank has ended.
    r"\b(WARNING|ERROR|CRITICAL)\b|^(?!torch\.distributed\.elastic)[\w.]*(Error|Exception):"
)
_TORCHRUN_OBITUARY = re.compile(r"torch/distributed/elastic/.*failed \(exitcode")
_DISK_FULL = "No space left on device"


class Report(Protocol):
    """Who is told how a job is doing."""

    def progress(self, done: int, total: int, unit: str, message: str) -> None:
        """Take note that `done` of `total` units are done."""

    def log(self, level: int, line: str) -> None:
        """Take note of one line of output."""


class LogTail:
    """Whole lines that were added to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def new_lines(self) -> list[str]:
        """Lines since the last call; an unfinished one waits for its end."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._position)
            added = file.read()
        self._position += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]


class Follower:
    """Passes on what a job writes: thinned log lines, and its progress when that changes."""

    def __init__(self, work_folder: Path, report: Report) -> None:
        self.report = report
        self._tail = LogTail(work_folder / LOG_FILE)
        self._progress_path = work_folder / PROGRESS_FILE
        self._progress = b""
        self._plain_lines = 0

    def look(self) -> None:
        """Report what is new."""
        for line in self._tail.new_lines():
            if _NOTEWORTHY.search(line):
                self.report.log(logging.WARNING, line)
            elif line.strip():
                if self._plain_lines % LOG_EVERY_LINES == 0:
                    self.report.log(logging.INFO, line)
                self._plain_lines += 1
        if self._progress_path.exists():
            self._tell_progress(self._progress_path.read_bytes())

    def _tell_progress(self, content: bytes) -> None:
        if content == self._progress:
            return
        self._progress = content
        values = json.loads(content)
        self.report.progress(
            values["done"], values["total"], values["unit"], values.get("message", "")
        )


def run_job(module: str, spec: JobSpec, *, report: Report) -> StageOutput:
    """Run `module` as torchrun ranks until it has written its outputs.

    Raises the error that the job wrote down, JobStoppedError when it was stopped, JobLostError
    (worth another try) when it ended otherwise.
    """
    work = Path(spec.work_folder)
    work.mkdir(parents=True, exist_ok=True)
    job_file = work / "job.json"
    spec.save(job_file)
    command = [*torchrun_command(spec), "-m", module, str(job_file)]
    return run_supervised(command, spec, report=report)


def torchrun_command(spec: JobSpec, torch_version: str | None = None) -> list[str]:
    """torchrun for one machine, without the module; it gives ranks the whole grace to save.

    Before torch 2.13 (`torch_version`: else the installed one) the grace is torchrun's own 30 s.
    """
    major, minor = (torch_version or version("torch")).split(".")[:2]
    grace = str(math.ceil(spec.execution.grace_seconds))
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        # The machine's own name need not resolve on a laptop.
        *("--local-addr", "127.0.0.1"),
        *("--nproc-per-node", str(spec.execution.ranks)),
        *(("--shutdown-timeout", grace) if (int(major), int(minor)) >= (2, 13) else ()),
    ]


def run_supervised(command: Sequence[str], spec: JobSpec, *, report: Report) -> StageOutput:
    """Run a command line that obeys the contract of jobs; returns what it wrote as its outputs."""
    work, grace_seconds = Path(spec.work_folder), spec.execution.grace_seconds
    mark = str(work.resolve())
    # Ranks of a run that was killed a moment ago may still be saving into this very folder.
    if left := supervise.end_marked(mark, grace_seconds):
        report.log(logging.WARNING, f"waited for {left} process(es) of an earlier run to end")
    for name in (ERROR_FILE, PROGRESS_FILE):
        (work / name).unlink(missing_ok=True)
    follower = Follower(work, report)
    with tracking(spec, lambda message: report.log(logging.WARNING, message)) as sink:
        exit_code = _supervised(command, spec, follower, sink)
    follower.look()
    return _with_log(outcome(spec, exit_code), spec)


def _supervised(command: Sequence[str], spec: JobSpec, follower: Follower, sink: Sink) -> int:
    """Start the command under a supervisor and wait for its end; returns its exit code."""
    work, grace_seconds = Path(spec.work_folder), spec.execution.grace_seconds
    mark = str(work.resolve())
    process = subprocess.Popen(
        supervise.command_line(
            command, log=work / LOG_FILE, grace_seconds=grace_seconds, mark=mark
        ),
        stdin=subprocess.PIPE,
        start_new_session=True,
        cwd=work,
        env=job_environment(spec),
    )
    try:
        while process.poll() is None:
            follower.look()
            sink.look()
            time.sleep(POLL_SECONDS)
    except BaseException:
        message = f"stopping; up to {grace_seconds:g} s to save the progress"
        follower.report.log(logging.WARNING, message)
        _stop(process, grace_seconds, mark)
        raise
    finally:
        if process.stdin is not None:
            process.stdin.close()
    if process.returncode < 0:
        # The supervisor itself was killed, and cannot have cleaned up.
        supervise.end_marked(mark, grace_seconds)
    return process.returncode


def job_environment(spec: JobSpec) -> dict[str, str]:
    """The environment of a job: that of this process, its threads, a compile cache that stays."""
    inherited = dict(os.environ)  # noqa: TID251  passed down to a child process, not read
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(user_cache_folder() / "inductor"),
        # Idle OpenMP threads must not spin on a machine with as many ranks as cores.
        "OMP_WAIT_POLICY": "passive",
        **inherited,
        "OMP_NUM_THREADS": str(spec.execution.threads),
    }


def _with_log(output: StageOutput, spec: JobSpec) -> StageOutput:
    """The whole log as a record file of the artifact, unless the job has seen to that."""
    if LOG_FILE in output.files:
        return output
    shutil.copyfile(Path(spec.work_folder, LOG_FILE), Path(spec.output_folder, LOG_FILE))
    return output.model_copy(update={"files": {**output.files, LOG_FILE: "record"}})


def _stop(process: subprocess.Popen[bytes], grace_seconds: float, mark: str) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(grace_seconds + supervise.HARD_KILL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        supervise.end_marked(mark, 0.0)


def outcome(spec: JobSpec, exit_code: int) -> StageOutput:
    """What a job that has ended stands for: its outputs, or the error to raise."""
    work, output = Path(spec.work_folder), Path(spec.output_folder)
    if exit_code == 0 and (output / OUTPUTS_FILE).exists():
        return StageOutput.load(output)
    if (work / ERROR_FILE).exists():
        raise written_error(work / ERROR_FILE)
    if exit_code == supervise.STOPPED_EXIT_CODE:
        raise errors.JobStoppedError(
            f"{spec.station} was asked to stop; run again to continue from its last checkpoint"
        )
    last = last_lines(work / LOG_FILE)
    if any(_DISK_FULL in line for line in last):
        raise errors.StoreUnavailableError(
            f"the disk filled up while {spec.station} wrote to {work}; free some space and run "
            "again: it continues from its last checkpoint"
        )
    raise errors.JobLostError(
        f"{spec.station} ended with exit code {exit_code} before it was done; "
        f"the last lines of {work / LOG_FILE}:\n" + "\n".join(f"  {line}" for line in last)
    )


def written_error(path: Path) -> errors.NanochatError:
    """The error that a job wrote down, as the same class with the same message."""
    values = json.loads(path.read_bytes())
    kind = getattr(errors, str(values["type"]), None)
    if not (isinstance(kind, type) and issubclass(kind, errors.NanochatError)):
        return errors.JobError(f"{values['type']}: {values['message']}")
    return kind(values["message"])


def last_lines(path: Path, count: int = LAST_LINES) -> list[str]:
    """The end of a log file up to the death of a rank; empty when there is none.

    What torchrun says after that is longer than `count` lines, and tells nothing.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 50_000, 0))
        lines = file.read().decode("utf-8", "replace").splitlines()
    deaths = [i for i, line in enumerate(lines) if _TORCHRUN_OBITUARY.search(line)]
    end = deaths[-1] + 1 if deaths else len(lines)
    return lines[max(end - count, 0) : end]
