"""Start a planned job: under the supervisor with its output on the terminal, or in place."""

import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import psutil

from flows.by_hand.evaluating import clear_work, evaluated, with_known_scores
from flows.by_hand.planning import Planned, check_resume_step
from flows.wording import duration
from nanochat_core.config.job import LOG_FILE, JobSpec, StageOutput
from nanochat_core.errors import ConfigError, JobError
from nanochat_core.evals.chat_results import chat_lines
from nanochat_core.evals.score_table import SCORES_FILE
from nanochat_core.inference.by_hand import newest_result, numbered_results, result_number
from tasks.launches import check_nodes
from tasks.listening import describe_metrics
from tasks.torchrun import LogTail, job_environment, run_job
from tasks.tracking import Sink

EVAL_RESULT = "result"
RANK_0_SECONDS = 600.0
_PLAIN_PREFIX = re.compile(r"^\d\d:\d\d:\d\d INFO [\w.]+: ")


class TerminalReport:
    """Passes on every line that a job writes, and shows how far it is where somebody looks on."""

    def __init__(self, work: Path, out: TextIO) -> None:
        self.out, self._tail, self._started = out, LogTail(work / LOG_FILE), time.monotonic()
        self._status = ""

    def progress(self, done: int, total: int, unit: str, message: str) -> None:
        """Replace the last line of a terminal; a file has the lines of the log."""
        self.flush()
        if not self.out.isatty():
            return
        seconds = time.monotonic() - self._started
        self._status = f"{done:,} of {total:,} {unit}, {duration(seconds)}  {message}"
        self._write("\r\x1b[K" + self._status[: shutil.get_terminal_size().columns - 1])

    def log(self, level: int, line: str) -> None:
        """Lines of the job are all taken from its log; warnings about it come from elsewhere."""
        told = self.flush()
        if level >= logging.WARNING and line not in told:
            self._line(line)

    def say(self, line: str) -> None:
        """A line that no job has written."""
        self.flush()
        self._line(line)

    def flush(self) -> list[str]:
        """Write what the job has written since."""
        lines = self._tail.new_lines()
        for line in lines:
            self._line(line)
        return lines

    def end(self) -> None:
        """The last lines, and a line of its own for what follows."""
        self.flush()
        if self._status:
            self._write("\n")

    def _line(self, line: str) -> None:
        text = _PLAIN_PREFIX.sub("", line)
        self._write(("\r\x1b[K" if self._status else "") + text + "\n")

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def make(planned: Planned, out: TextIO) -> Path:
    """Run the job to its end, from its last checkpoint if there is one; the folder of the result.

    Raises what the job raises; a result that is finished already is only named.
    """
    folder = planned.folder
    check_nodes(planned.station, planned.execution)
    folder.hold()
    if finished := _finished(planned):
        out.write(f"{finished} is finished already; --overwrite makes it again\n")
        return finished
    spec = prepare(planned)
    out.writelines(f"{line}\n" for line in opening_lines(planned))
    report = TerminalReport(folder.work, out)
    try:
        if planned.is_training:
            output = run_job(module_of(planned), spec, report=report)
        else:
            output = evaluated(planned, spec, report)
    finally:
        report.end()
    folder.clear_older()
    result = Path(spec.output_folder)
    for line in closing_lines(planned, output, result):
        out.write(f"{line}\n")
    return result


def become(planned: Planned, environ: Mapping[str, str]) -> None:
    """Become the job, as one rank of torchrun or alone.

    The first rank makes the folders ready and writes the job's file last; the others wait for
    it, so that all of them run the very same job.
    """
    if planned.execution.nodes > 1:
        raise ConfigError(
            f"--nnodes={planned.execution.nodes}: a script is one machine's; give the same flags "
            "to nanochat train or nanochat eval, which start torchrun, and nanochat join elsewhere"
        )
    if finished := _finished(planned):
        if environ.get("RANK", "0") == "0":
            sys.stderr.write(f"{finished} is finished already; --overwrite makes it again\n")
        sys.exit(0)
    job_file = planned.folder.path / f"job-{_launch_id()}.json"
    if environ.get("RANK", "0") == "0":
        planned.folder.hold()
        sys.stderr.writelines(f"{line}\n" for line in opening_lines(planned))
        for path in planned.folder.path.glob("job-*.json"):
            path.unlink(missing_ok=True)
        # A restart by torchrun itself continues what its first start had begun, wherever it is.
        if int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
            planned = replace(planned, overwrite=False, resume_step=-1)
        spec = prepare(planned)
        if not planned.is_training:
            spec = with_known_scores(
                planned, spec, lambda line: sys.stderr.writelines([line, "\n"])
            )
        unfinished = job_file.with_suffix(".tmp")
        spec.save(unfinished)
        os.replace(unfinished, job_file)
        Sink(spec, lambda warning: sys.stderr.writelines([warning, "\n"])).hand_over()
    else:
        spec = _job_of_rank_0(job_file)
    command = [sys.executable, "-m", module_of(planned), str(job_file)]
    os.execve(sys.executable, command, job_environment(spec))


def _job_of_rank_0(job_file: Path) -> JobSpec:
    deadline = time.monotonic() + RANK_0_SECONDS
    while not job_file.exists():
        if time.monotonic() > deadline:
            raise JobError(f"rank 0 wrote no {job_file} within {RANK_0_SECONDS:g} s")
        time.sleep(0.05)
    return JobSpec.load(job_file)


def _launch_id() -> str:
    """The same for all ranks that one torchrun has started, and for no others."""
    parent = psutil.Process(os.getppid())
    return f"{parent.pid}-{int(parent.create_time())}"


def _finished(planned: Planned) -> Path | None:
    if not planned.is_training or planned.overwrite:
        return None
    return planned.folder.finished(planned.record)


def opening_lines(planned: Planned) -> list[str]:
    """What is about to happen, and what it is made from."""
    notes = [f"note: {note}" for note in planned.notes]
    inputs = [f"  {name}: {source.folder}" for name, source in planned.sources.items()]
    return [*notes, f"{planned.kind} in {planned.folder.path}, from", *inputs]


def closing_lines(planned: Planned, output: StageOutput, result: Path) -> list[str]:
    """What came out, for people."""
    lines = []
    if planned.station == "chat_eval":
        lines += chat_lines(json.loads((result / SCORES_FILE).read_bytes()))
    elif planned.is_training:  # the job of base_eval ends with its table
        lines.append(describe_metrics(output.metrics).strip())
    if planned.is_training:
        lines.append(f"model {planned.folder.path.name}: {result}")
    else:
        lines.append(f"all files: {result}")
    return lines


def module_of(planned: Planned) -> str:
    """The job's module."""
    return f"nanochat_core.jobs.{planned.station}"


def prepare(planned: Planned) -> JobSpec:
    """Make the folders ready and write down what the run is; returns what the job is told."""
    check_resume_step(planned)
    folder, spec = planned.folder, spec_of(planned)
    output = Path(spec.output_folder)
    if planned.is_training:
        record = folder.begin(planned.record, overwrite=planned.overwrite)
        tokenizer = planned.sources["tokenizer"].folder
        folder.prepare(record, tokenizer, fresh=planned.overwrite)
    else:
        clear_work(folder.work, fresh=planned.fresh)
        for path in numbered_results(folder.path):
            if path != newest_result(folder.path):
                shutil.rmtree(path)
        output.mkdir(parents=True)
    folder.work.mkdir(parents=True, exist_ok=True)
    if planned.looks is not None:
        planned.looks.save(folder.work)
    return spec


def spec_of(planned: Planned) -> JobSpec:
    """The job; changes nothing on disk."""
    folder = planned.folder
    if planned.is_training:
        name = folder.begin(planned.record, overwrite=planned.overwrite).result
    else:
        newest = newest_result(folder.path)
        name = f"{EVAL_RESULT}-{result_number(newest) + 1 if newest else 1:06d}"
    return JobSpec(
        station=planned.station,
        recipe=planned.recipe.model_dump(mode="json"),
        execution=planned.execution,
        inputs={name: str(source.folder) for name, source in planned.sources.items()},
        work_folder=str(folder.work),
        output_folder=str(folder.path / name),
    )
