"""Run one command so that it can never outlive the process that asked for it.

    python -m nanochat_core.supervise --log FILE [--grace-seconds S] [--mark TEXT] -- COMMAND...

The command gets a session of its own and writes into FILE: a pipe would kill it on the first
line after its reader has died, before it has saved. It is asked to stop (SIGTERM to its process
group, SIGKILL after the grace) when stdin reaches its end, which happens however the parent
dies, or when this process gets SIGTERM or SIGINT. Processes that the command leaves behind (each
torchrun rank has a session of its own, where no group signal reaches it) are found by an
environment variable that they inherit, and end the same way.
"""

import argparse
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

SUPERVISOR_PID = "NANOCHAT_SUPERVISOR_PID"
"""Environment variable: the process whose end a rank has to notice by itself."""
JOB_MARK = "NANOCHAT_JOB_MARK"
"""Environment variable: what all processes of one job, and only they, have in common."""

DEFAULT_GRACE_SECONDS = 12.0
POLL_SECONDS = 0.1
STOPPED_EXIT_CODE = 128 + signal.SIGTERM
HARD_KILL_SECONDS = 5.0
"""How long to wait for killed processes; one that hangs in the kernel cannot be helped."""

logger = logging.getLogger(__name__)


def marked_processes(mark: str) -> list[psutil.Process]:
    """Live processes of this user that inherited `mark`, in whatever session they are."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            is_ours = process.pid != os.getpid() and process.environ().get(JOB_MARK) == mark
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_marked(mark: str, grace_seconds: float) -> int:
    """Stop what is left of a job: SIGTERM, then SIGKILL after the grace; returns how many."""
    left = marked_processes(mark)
    _signal_each(left, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    give_up = deadline + HARD_KILL_SECONDS
    # Listed again each time: a process that was forking shows up only in a later listing.
    while (alive := marked_processes(mark)) and time.monotonic() < give_up:
        if time.monotonic() >= deadline:
            _signal_each(alive, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return len(left)


def _signal_each(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


class Supervisor:
    """One command, from its start until nothing of it is left."""

    def __init__(self, command: Sequence[str], log: Path, grace_seconds: float, mark: str) -> None:
        self.command, self.log = list(command), log
        self.grace_seconds, self.mark = grace_seconds, mark
        self._reason = ""
        self._stdin_is_open = True

    def request_stop(self, number: int, _frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT."""
        self._reason = f"got {signal.Signals(number).name}"

    def run(self) -> int:
        """Start the command, wait for its end or for a reason to end it.

        Returns the exit code of the command, 128 + n when signal n ended it, and 143 when it was
        asked to stop before it was done, whatever torchrun made of that.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab", buffering=0) as output:
            child = self._start(output.fileno())
            self._watch(child)
            deadline = time.monotonic() + self.grace_seconds
            if child.poll() is None:
                self._say(output.fileno(), f"{self._reason}, so the job is asked to stop")
                self._stop(child)
            code = child.wait()
            # A rank whose torchrun was killed still deserves its time to save.
            if left := end_marked(self.mark, max(deadline - time.monotonic(), 1.0)):
                self._say(output.fileno(), f"ended {left} process(es) that the job left behind")
        if self._reason and code != 0:
            return STOPPED_EXIT_CODE
        return code if code >= 0 else 128 - code

    def _start(self, output: int) -> subprocess.Popen[bytes]:
        inherited = dict(os.environ)  # noqa: TID251  an entry; the command inherits it
        return subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**inherited, SUPERVISOR_PID: str(os.getpid()), JOB_MARK: self.mark},
        )

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None and not self._reason:
            if not self._stdin_is_open:
                self._reason = "the parent is gone"
            elif select.select([0], [], [], POLL_SECONDS)[0]:
                self._stdin_is_open = bool(os.read(0, 4096))

    def _stop(self, child: subprocess.Popen[bytes]) -> None:
        """SIGTERM to the group, wait for the grace, SIGKILL to all that is left."""
        _signal_group(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(self.grace_seconds)
            return
        _signal_group(child.pid, signal.SIGKILL)
        # The time to save is over for whatever the command has started, too.
        _signal_each(marked_processes(self.mark), signal.SIGKILL)

    @staticmethod
    def _say(output: int, message: str) -> None:
        # The disk can be full, and the job must end all the same.
        with suppress(OSError):
            os.write(output, f"supervise: {message}\n".encode())


def _signal_group(leader: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def command_line(
    command: Sequence[str], *, log: Path, grace_seconds: float, mark: str
) -> list[str]:
    """The arguments that start `command` under a supervisor (give it a pipe as stdin)."""
    options = ["--log", str(log), "--grace-seconds", str(grace_seconds), "--mark", mark]
    return [sys.executable, "-m", "nanochat_core.supervise", *options, "--", *command]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m nanochat_core.supervise")
    parser.add_argument("--log", type=Path, required=True, help="file that gets all output")
    parser.add_argument("--grace-seconds", type=float, default=DEFAULT_GRACE_SECONDS)
    parser.add_argument("--mark", default="", help="common name of all processes of this job")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("give the command to run after --")
    mark = options.mark or f"{os.getpid()}-{time.time_ns()}"
    supervisor = Supervisor(command, options.log, options.grace_seconds, mark)
    signal.signal(signal.SIGTERM, supervisor.request_stop)
    signal.signal(signal.SIGINT, supervisor.request_stop)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
