"""Jobs of several ranks that are started, looked at and hurt by the tests."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from nanochat_core import supervise
from nanochat_core.config.job import METRICS_FILE, JobSpec, StageOutput
from tasks.torchrun import run_job

SECONDS_ALLOWED = 60.0


class Heard:
    """Lines that a job has passed on."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def progress(self, done: int, total: int, unit: str, message: str) -> None:
        """Not looked at."""

    def log(self, level: int, line: str) -> None:
        """Keep the line."""
        self.lines.append(line)


class FirstHost:
    """`run_job` in a thread, as a flow or a command by hand calls it."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec, self.heard = spec, Heard()
        self.output: StageOutput | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        module = f"nanochat_core.jobs.{self.spec.station}"
        try:
            self.output = run_job(module, self.spec, report=self.heard)
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.error = error

    def wait(self, seconds: float = SECONDS_ALLOWED) -> None:
        """Return when the job has ended."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the job did not end"


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS_ALLOWED
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def steps_done(spec: JobSpec) -> int:
    """The last step in metrics.jsonl, of which the end may be half a line."""
    path = Path(spec.work_folder) / METRICS_FILE
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((json.loads(line).get("step", 0) for line in lines if line), default=0)


def rank_process(mark: str, rank: int) -> psutil.Process:
    """The process of one rank, among those with this mark."""
    found = [
        process
        for process in supervise.marked_processes(mark)
        if process.environ().get("RANK") == str(rank)
    ]
    # Compilers and the like inherit the variables; the rank is the eldest.
    return min(found, key=lambda process: process.create_time())


def kill_all(mark: str) -> None:
    """SIGKILL to everything with this mark, as when a machine loses its power."""
    while left := supervise.marked_processes(mark):
        for process in left:
            process.kill()
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def environment() -> dict[str, str]:
    """For commands of a test: one thread, and our checkout before what is installed."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
