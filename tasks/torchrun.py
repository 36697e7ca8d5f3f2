"""Start a torchrun job under the supervisor, follow it, and turn its end into a value or an error.

A job's exit code does not survive torchrun, which ends with 1 whatever its ranks ended with. So a
mistake of the user is told by `error.json`, a stop on request by the supervisor, and the rest is
a lost job.

A rank that is lost, on whatever machine, or that hangs, ends the job with RanksLostError: within
`collective_timeout_seconds`, and twice the grace and 10 s to save and end what is left.
"""

import json
import logging
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from nanochat_core import errors, supervise
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import (
    ERROR_FILE,
    LOG_FILE,
    OUTPUTS_FILE,
    PROGRESS_FILE,
    JobSpec,
    StageOutput,
)
from nanochat_core.jobs.error_file import write_error
from tasks.kernel_cache import kernel_folder
from tasks.launches import JOB_FILE, announced, check_nodes, rendezvous_host
from tasks.process_environment import process_environment
from tasks.tracking import tracking

POLL_SECONDS = 0.2
TORCHRUN_FAILED = 1
"""Exit code of torchrun after the end of a rank with any but 0."""
LOG_EVERY_LINES = 25
"""Every so-manieth plain line is passed on; warnings all are. The whole log stays in its file."""
LAST_LINES = 15
TAIL_BYTES = 50_000
MEMORY_RELAUNCHES = 8
"""Micro-batches are halved each time: 8 times is from 256 rows to one."""
_NOTEWORTHY = re.compile(
    # torchrun's own exceptions only repeat that a rank has ended.
    r"\b(WARNING|ERROR|CRITICAL)\b|^(?!torch\.distributed\.elastic)[\w.]*(Error|Exception):"
)
_TORCHRUN_OBITUARY = re.compile(r"torch/distributed/elastic/.*failed \(exitcode")
_DISK_FULL = "No space left on device"
# nccl ends a process whose collective hangs, or whose peer is gone, before it can tell more.
_NCCL_LOST = (
    r"Watchdog caught collective operation timeout|watchdog got stuck"
    r"|NCCL error: remote process exited|ncclRemoteError"
)
_NCCL_LOST_A_RANK = re.compile(_NCCL_LOST)
# torchrun waits ten minutes for the other machines, and one for the first.
_LOST_RANK = re.compile(rf"{_NCCL_LOST}|Rendezvous(Timeout|Connection|Closed)Error")


Watch = Callable[[], None]


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
        self._position = _size(path)
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


def run_job(
    module: str, spec: JobSpec, *, report: Report, watch: Watch = lambda: None
) -> StageOutput:
    """Run `module` as torchrun ranks until it has written its outputs.

    On several machines this is the first one, and `nanochat join` runs the ranks of the others.
    `watch` is called again and again meanwhile; what it raises stops the job, which saves first.
    Raises the error that the job wrote down, JobStoppedError when it was stopped, JobLostError
    (worth another try) when it ended otherwise.
    """
    check_nodes(spec.station, spec.execution)
    work = Path(spec.work_folder)
    work.mkdir(parents=True, exist_ok=True)
    job_file = work / JOB_FILE
    spec.save(job_file)
    if spec.execution.nodes > 1:
        others = spec.execution.nodes - 1
        report.log(logging.WARNING, f"on {others} more machine(s), run: nanochat join {job_file}")
    command = [*torchrun_command(spec), "-m", module, str(job_file)]
    launch = partial(announced, spec, module, partial(report.log, logging.WARNING))
    return run_supervised(command, spec, report=report, launch=launch, watch=watch)


def torchrun_command(
    spec: JobSpec, torch_version: str | None = None, *, joins: bool = False
) -> list[str]:
    """torchrun for this machine, without the module; it gives ranks the whole grace to save.

    Of several machines this is the first, unless it `joins` that one. Before torch 2.13
    (`torch_version`: else the installed one) the grace is torchrun's own 30 s.
    """
    major, minor = (torch_version or version("torch")).split(".")[:2]
    grace = str(math.ceil(spec.execution.grace_seconds))
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *_meeting_options(spec.execution, joins=joins),
        *("--nproc-per-node", str(spec.execution.ranks)),
        *(("--shutdown-timeout", grace) if (int(major), int(minor)) >= (2, 13) else ()),
    ]


def _meeting_options(execution: Execution, *, joins: bool) -> list[str]:
    if execution.nodes == 1:
        # The machine's own name need not resolve on a laptop.
        return ["--standalone", "--local-addr", "127.0.0.1"]
    # torchrun numbers machines by their addresses in the order of the alphabet, and all ranks call
    # at the address of the first: a name with ~ in front is last, so rank 0 is where the log is.
    address = f"~{socket.gethostname()}" if joins else rendezvous_host(execution)
    return [
        *("--nnodes", str(execution.nodes), "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", execution.rendezvous_endpoint),
        *("--rdzv-id", execution.rendezvous_id),
        *("--rdzv-conf", f"is_host={'false' if joins else 'true'}"),
        *("--local-addr", address),
    ]


def run_supervised(
    command: Sequence[str],
    spec: JobSpec,
    *,
    report: Report,
    launch: Callable[[], AbstractContextManager[None]] = nullcontext,
    watch: Watch = lambda: None,
) -> StageOutput:
    """Run a command line that obeys the contract of jobs; returns what it wrote as its outputs.

    One that was too large for the memory of its device has noted a smaller micro-batch in its work
    folder, and is started again. Every start is inside of a `launch()`.
    """
    for relaunches in range(MEMORY_RELAUNCHES + 1):
        try:
            with launch():
                return _run_once(command, spec, report, watch)
        except errors.DeviceMemoryError as error:
            if relaunches == MEMORY_RELAUNCHES:
                raise
            report.log(logging.WARNING, f"{error}; {spec.station} is started again")
    raise AssertionError("the last relaunch returns or raises")


def _run_once(command: Sequence[str], spec: JobSpec, report: Report, watch: Watch) -> StageOutput:
    work, mark = Path(spec.work_folder), mark_of(spec)
    end_leftovers(mark, spec, report)
    for name in (ERROR_FILE, PROGRESS_FILE):
        (work / name).unlink(missing_ok=True)
    follower, log_start = Follower(work, report), _size(work / LOG_FILE)
    with tracking(spec, lambda message: report.log(logging.WARNING, message)) as sink:

        def look() -> None:
            follower.look()
            sink.look()
            watch()

        exit_code = supervised(command, spec, report, log=work / LOG_FILE, mark=mark, look=look)
    follower.look()
    return _with_log(outcome(spec, exit_code, log_start=log_start), spec)


def mark_of(spec: JobSpec, *, joins: bool = False) -> str:
    """What the processes of a job on this machine have in common."""
    # A machine that joins itself, as in tests, must not take its ranks for those of the first one.
    return str(Path(spec.work_folder).resolve()) + (" joined" if joins else "")


def end_leftovers(mark: str, spec: JobSpec, report: Report) -> None:
    """End ranks of a run that was killed a moment ago, and may still save into this folder."""
    if left := supervise.end_marked(mark, spec.execution.grace_seconds):
        report.log(logging.WARNING, f"waited for {left} process(es) of an earlier run to end")


def supervised(
    command: Sequence[str],
    spec: JobSpec,
    report: Report,
    *,
    log: Path,
    mark: str,
    look: Callable[[], None],
) -> int:
    """Start the command under a supervisor and wait for its end; returns its exit code.

    Once the job has told its error, on whatever machine, what is left of it here gets the grace:
    torchrun would give hung ranks 30 s, and not know of other machines. A rank that nccl has ended
    can tell nothing, so its line in the log is told for it.
    """
    work, error_seen, tail = Path(spec.work_folder), math.inf, LogTail(log)
    grace_seconds = spec.execution.grace_seconds
    process = subprocess.Popen(
        supervise.command_line(command, log=log, grace_seconds=grace_seconds, mark=mark),
        stdin=subprocess.PIPE,
        start_new_session=True,
        cwd=spec.work_folder,
        env=job_environment(spec),
    )
    try:
        while process.poll() is None:
            look()
            for line in filter(_NCCL_LOST_A_RANK.search, tail.new_lines()):
                write_error(work, errors.RanksLostError(_lost_message(spec, line)))
            if (work / ERROR_FILE).exists():
                error_seen = min(error_seen, time.monotonic())
            if time.monotonic() - error_seen > grace_seconds:
                _stop(process, grace_seconds, mark)
                return TORCHRUN_FAILED  # and not what the supervisor says: nobody wants a stop
            time.sleep(POLL_SECONDS)
    except BaseException:
        message = f"stopping; up to {grace_seconds:g} s to save the progress"
        report.log(logging.WARNING, message)
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
        "TORCHINDUCTOR_CACHE_DIR": str(kernel_folder(spec.execution)),
        **process_environment(inherited),
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


def outcome(spec: JobSpec, exit_code: int, *, log_start: int = 0) -> StageOutput:
    """What a job that has ended stands for: its outputs, or the error to raise.

    Its log starts at byte `log_start`; before that are those of earlier starts.
    """
    work, output = Path(spec.work_folder), Path(spec.output_folder)
    if exit_code == 0 and (output / OUTPUTS_FILE).exists():
        return StageOutput.load(output)
    written = written_error(work / ERROR_FILE) if (work / ERROR_FILE).exists() else None
    asked_to_stop = exit_code == supervise.STOPPED_EXIT_CODE
    if asked_to_stop and isinstance(written, errors.RanksLostError):
        written = None  # Ranks that did not make it within the grace.
    if isinstance(written, errors.JobStoppedError):
        # The machine that was asked may be another one; but whoever kills torchrun or the
        # supervisor wants no stop, and the ranks were told to by what was left.
        asked_to_stop, written = asked_to_stop or exit_code == TORCHRUN_FAILED, None
    if asked_to_stop and written is None:
        raise errors.JobStoppedError(
            f"{spec.station} was asked to stop; run again to continue from its last checkpoint"
        )
    last = last_lines(work / LOG_FILE, start=log_start)
    shown = f"the last lines of {work / LOG_FILE}:\n" + "\n".join(f"  {line}" for line in last)
    if logs := ", ".join(str(path) for path in sorted(work.glob("job-*.log"))):
        shown += f"\nand the logs of other machines: {logs}"
    if isinstance(written, errors.RanksLostError):
        raise errors.RanksLostError(f"{spec.station}: {written}; {shown}")
    if written is not None:
        raise written
    if any(_DISK_FULL in line for line in last):
        raise errors.StoreUnavailableError(
            f"the disk filled up while {spec.station} wrote to {work}; free some space and run "
            "again: it continues from its last checkpoint"
        )
    if lost := [line for line in _tail(work / LOG_FILE, log_start) if _LOST_RANK.search(line)]:
        raise errors.RanksLostError(f"{spec.station}: {_lost_message(spec, lost[-1])}; {shown}")
    raise errors.JobLostError(
        f"{spec.station} ended with exit code {exit_code} before it was done; {shown}"
    )


def _lost_message(spec: JobSpec, line: str) -> str:
    return (
        f"a rank or a machine is lost: {line.strip()}. A collective waits for "
        f"{spec.execution.collective_timeout_seconds:g} s (collective_timeout_seconds). Look at "
        "the machines and their network, then run again to go on from the last checkpoint"
    )


def written_error(path: Path) -> errors.NanochatError:
    """The error that a job wrote down, as the same class with the same message."""
    values = json.loads(path.read_bytes())
    kind = getattr(errors, str(values["type"]), None)
    if not (isinstance(kind, type) and issubclass(kind, errors.NanochatError)):
        return errors.JobError(f"{values['type']}: {values['message']}")
    return kind(values["message"])


def last_lines(path: Path, count: int = LAST_LINES, *, start: int = 0) -> list[str]:
    """The end of a log file, from byte `start`, up to the death of a rank; empty without a file.

    What torchrun says after that is longer than `count` lines, and tells nothing.
    """
    lines = _tail(path, start)
    deaths = [i for i, line in enumerate(lines) if _TORCHRUN_OBITUARY.search(line)]
    end = deaths[-1] + 1 if deaths else len(lines)
    return lines[max(end - count, 0) : end]


def _tail(path: Path, start: int) -> list[str]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL_BYTES, start))
        return file.read().decode("utf-8", "replace").splitlines()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
