"""A Prefect worker that ends in order: `python worker.py --pool cpu ...`, options of the worker.

`docker stop` asks the first process of a container to end, and kills all others once it has. A
Prefect worker kills its flow runs when it is asked, and leaves; a job in training would lose what
it did since its last checkpoint, and the run would stay Running. So on SIGTERM this process

1. holds the worker still, as it would start the next run else,
2. ends its flow runs, each of which lets its job save and tells the server,
3. ends the worker, and waits for whatever is still at work in this container.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import psutil

SAVING_SECONDS = 60.0
"""For the runs to end; `stop_grace_period` is longer. A job takes its `grace_seconds` (8)."""
POLL_SECONDS = 0.1
PR_SET_CHILD_SUBREAPER = 36
EXIT_STOPPED = 0


class Worker:
    """One worker process, and all that comes of it."""

    def __init__(self, options: Sequence[str]) -> None:
        self._is_asked_to_stop = False
        signal.signal(signal.SIGTERM, self._ask_to_stop)
        signal.signal(signal.SIGINT, self._ask_to_stop)
        adopt_orphans()
        name = f"{socket.gethostname()}-{os.getpid()}"
        command = [sys.executable, "-m", "prefect", "worker", "start", "--name", name]
        # A group of its own: Ctrl-C in a terminal reaches this process alone, in the right order.
        self._process = subprocess.Popen([*command, *options], process_group=0)
        self.pid = self._process.pid
        self.exit_code: int | None = None

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._is_asked_to_stop = True

    def run(self) -> int:
        """Wait for its end, or for a reason to end it; returns the exit code of this process."""
        while self.exit_code is None and not self._is_asked_to_stop:
            self._reap()
            time.sleep(POLL_SECONDS)
        if self.exit_code is None:
            say("ending the flow runs")
            self._end_runs()
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)
        while self._reap():
            time.sleep(POLL_SECONDS)
        say("all has ended")
        return EXIT_STOPPED if self._is_asked_to_stop else self.exit_code or 1

    def _end_runs(self) -> None:
        """Ask every run to end, and wait; the worker is held still meanwhile."""
        self._signal(signal.SIGSTOP)
        runs = self._runs()
        for run in runs:
            with suppress(psutil.NoSuchProcess):
                run.terminate()
        # They stay zombies until the worker looks, as it is their parent.
        deadline = time.monotonic() + SAVING_SECONDS
        while any(is_at_work(run) for run in runs) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _runs(self) -> list[psutil.Process]:
        try:
            return [run for run in psutil.Process(self.pid).children() if is_at_work(run)]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: signal.Signals) -> None:
        if self.exit_code is None:
            os.kill(self.pid, number)

    def _reap(self) -> bool:
        """Collect those that have ended; False when nobody is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.exit_code = os.waitstatus_to_exitcode(status)


def adopt_orphans() -> None:
    """Become the parent of all that lose theirs: jobs whose flow run has ended, and their ranks."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become the parent of orphaned processes")


def is_at_work(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def say(text: str) -> None:
    """A line for the log of the container."""
    sys.stderr.write(f"worker.py: {text}\n")


if __name__ == "__main__":
    sys.exit(Worker(["--type", "process", "--with-healthcheck", *sys.argv[1:]]).run())
