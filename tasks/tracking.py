"""Send metrics.jsonl to W&B or trackio, too, by a small process beside the job.

    python -m tasks.tracking JOB.json

Training knows no tracker: the process follows the file that the job writes anyway, at a low
priority. It ends when its stdin does, which happens however its parent dies. Whatever goes wrong
in it costs one warning, never the job. With `< /dev/null` it sends a finished file.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil

from nanochat_core import supervise
from nanochat_core.artifacts.location import user_cache_folder
from nanochat_core.config.job import METRICS_FILE, JobSpec
from nanochat_core.errors import ConfigError
from nanochat_core.logs import configure_logging
from tasks.tracking_backends import TrackedRun, open_tracker, settle_environment
from tasks.tracking_file import MetricsFile, follow

TRACKING_FILE = "tracking.json"
"""Keeps the id of the run at the tracker as long as the work folder, so for all its resumes."""
TRACKING_LOG = "tracking.log"
_JOB_FILE = "tracking-job.json"
_EXTRAS = {"wandb": "track", "trackio": "trackio"}
_NICENESS = 10

FINISH_SECONDS = 20.0
"""How long the last lines may take after the job's end: W&B online uploads, and may hang."""
START_AND_END_SECONDS = 5.0


def check_tracker(name: str) -> None:
    """Refuse a tracker whose package is not installed; imports nothing."""
    extra = _EXTRAS.get(name)
    if extra is None:
        return
    found = importlib.util.find_spec(name)
    # A folder of that name in the current one (W&B makes them) passes for a package without code.
    if found is None or found.origin is None:
        raise ConfigError(
            f"tracker={name} needs the package {name}, which is not installed; "
            f'run pip install -c constraints.txt -e ".[{extra}]" or use tracker=none'
        )


class Sink:
    """The process that follows one job's metrics, as its parent sees it."""

    def __init__(self, spec: JobSpec, warn: Callable[[str], None]) -> None:
        self.tracker, self._warn = spec.execution.tracker, warn
        self.work = Path(spec.work_folder).resolve()
        self._has_warned = False
        # Not the mark of the job, which ends all that carries it before the last lines are sent.
        self._mark = f"{self.work} {TRACKING_FILE}"
        self._process: subprocess.Popen[bytes] | None = None
        if self.tracker != "none":
            try:
                self._process = self._start(spec)
            except OSError as error:
                self._complain(str(error))

    def look(self) -> None:
        """Tell at once when the process has given up."""
        if self._process is not None and self._process.poll():
            self._complain(f"exit code {self._process.returncode}: {self._last_line()}")

    def end(self) -> None:
        """Let it send the last lines, and wait for that; end whatever is left after a while."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.close()
            self._process.wait(FINISH_SECONDS + START_AND_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._complain("it hung after the end of the job, and was killed")
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            # W&B works in a process of its own, and a session of its own.
            supervise.end_marked(self._mark, 1.0)
        self.look()

    def hand_over(self) -> None:
        """Leave it to the program that this process becomes by exec: it ends with that."""
        if self._process is not None and self._process.stdin is not None:
            # A bare descriptor: nothing closes it when this object is collected, and exec keeps it.
            os.set_inheritable(os.dup(self._process.stdin.fileno()), True)

    def _start(self, spec: JobSpec) -> subprocess.Popen[bytes]:
        self._wait_for_an_earlier_one()
        self.work.mkdir(parents=True, exist_ok=True)
        job_file, metrics = self.work / _JOB_FILE, self.work / METRICS_FILE
        spec.model_copy(update={"work_folder": str(self.work)}).save(job_file)
        written = metrics.stat().st_mtime_ns if metrics.exists() else 0
        inherited = dict(os.environ)  # noqa: TID251  passed down to a child process, not read
        command = [sys.executable, "-m", "tasks.tracking", str(job_file)]
        with (self.work / TRACKING_LOG).open("wb") as log:
            return subprocess.Popen(
                [*command, "--stale-mtime", str(written)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is for the parent alone.
                start_new_session=True,
                # Python looks there first for packages, and a user's folder may hold any.
                cwd=self.work,
                env={**inherited, "OMP_NUM_THREADS": "1", supervise.JOB_MARK: self._mark},
            )

    def _wait_for_an_earlier_one(self) -> None:
        """Its parent was killed a moment ago, and it may still be sending its last lines."""
        deadline = time.monotonic() + FINISH_SECONDS + START_AND_END_SECONDS
        while supervise.marked_processes(self._mark) and time.monotonic() < deadline:
            time.sleep(supervise.POLL_SECONDS)
        supervise.end_marked(self._mark, 0.0)

    def _complain(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._warn(
                f"{self.tracker} does not get (all of) the metrics ({reason}); "
                f"they are complete in {METRICS_FILE}, and the job is not affected"
            )

    def _last_line(self) -> str:
        log = (self.work / TRACKING_LOG).read_text(encoding="utf-8", errors="replace")
        return (log.strip().splitlines() or [""])[-1]


@contextmanager
def tracking(spec: JobSpec, warn: Callable[[str], None]) -> Iterator[Sink]:
    """Send the metrics of the job that runs inside to its tracker, if its execution names one.

    Enter it once no process of an earlier run of the job is left, and leave it when the job has
    ended. Calling `look` now and then makes its one warning come early.
    """
    sink = Sink(spec, warn)
    try:
        yield sink
    finally:
        sink.end()


def tracked_run(spec: JobSpec) -> TrackedRun:
    """What a tracker is told about a job: what was asked for, and no path, host or environment."""
    return TrackedRun(
        id=run_id(Path(spec.work_folder)),
        name=spec.execution.tracker_run or spec.station,
        station=spec.station,
        config={
            "station": spec.station,
            "recipe": spec.recipe,
            "execution": spec.execution.model_dump(mode="json"),
        },
    )


def run_id(work: Path) -> str:
    """The id of the run in this work folder: drawn once, found again by every resume."""
    path = work / TRACKING_FILE
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"run_id": uuid4().hex[:12]}), encoding="utf-8")
        os.replace(temporary, path)
    return str(json.loads(path.read_bytes())["run_id"])


def _watch_stdin(ended: threading.Event) -> None:
    """Note its end; a tracker that has not finished a while later never will."""
    while os.read(0, 4096):
        pass
    ended.set()
    time.sleep(FINISH_SECONDS)
    os.write(2, f"gave up {FINISH_SECONDS:g} s after the end of the job\n".encode())
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tasks.tracking")
    parser.add_argument("job", type=Path, help="job.json, whose work folder has the metrics")
    parser.add_argument(
        "--stale-mtime", type=int, default=0, help="ns; the file as an earlier run left it"
    )
    options = parser.parse_args(arguments)
    ended = threading.Event()
    threading.Thread(target=_watch_stdin, args=(ended,), daemon=True).start()
    # The job comes first on a machine with few cores; not every system lets one say so.
    with suppress(AttributeError, OSError):
        os.nice(_NICENESS)
    configure_logging()
    spec = JobSpec.load(options.job)
    environ = os.environ  # noqa: TID251  an entry; trackers take their settings from there
    settle_environment(spec.execution.tracker, environ, user_cache_folder())
    file = MetricsFile(Path(spec.work_folder, METRICS_FILE), options.stale_mtime)
    follow(file, lambda: open_tracker(spec.execution.tracker, tracked_run(spec)), ended)
    return 0


if __name__ == "__main__":
    sys.exit(main())
