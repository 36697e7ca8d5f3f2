"""What every torchrun job does at its door: spec, logging, signals, ranks, exit codes.

Exit codes: 0 done (`outputs.json` is written), 2 an error that `error.json` tells, 143 stopped on
request with the progress saved; anything else means that the process was lost.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil
import torch.distributed as dist

from nanochat_core.config.execution import Execution
from nanochat_core.config.job import JobSpec
from nanochat_core.distributed.ranks import Ranks, init_ranks, tells_of_lost_rank
from nanochat_core.errors import JobStoppedError, NanochatError, RanksLostError
from nanochat_core.jobs.error_file import write_error
from nanochat_core.logs import configure_logging
from nanochat_core.training.torch_setup import set_up_torch

log = logging.getLogger(__name__)

EXIT_TOLD = 2
EXIT_STOPPED = 143
JOIN_SPARE_SECONDS = 10.0
"""What joining the process group may take beyond a collective: its own error says more."""
WRITING_SECONDS = 5.0
"""What a checkpoint under way gets when a rank is lost: the others may have written their parts."""
PARENT_POLL_SECONDS = 0.5
SUPERVISOR_VARIABLE = "NANOCHAT_SUPERVISOR_PID"


class StopRequest:
    """Whether this process was asked to stop: by a signal, or because its parents died."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._parent = os.getppid()
        self.is_wanted = False
        """Whether somebody wants the job to stop, rather than something of it having died."""

    def __call__(self) -> bool:
        """True once a stop was asked for."""
        return self._event.is_set()

    def set(self, reason: str) -> None:
        """Ask for a stop; the job saves and ends at the next step."""
        if not self._event.is_set():
            # Not a log call: a signal handler may interrupt one that holds the lock.
            os.write(2, f"stop requested: {reason}\n".encode())
            self._event.set()

    def listen(self) -> None:
        """Take SIGTERM and SIGINT as requests to stop."""

        def handler(number: int, _frame: FrameType | None) -> None:
            # A supervisor whose torchrun has died ends the ranks with the same signal.
            self.is_wanted = self.is_wanted or os.getppid() == self._parent
            self.set(signal.Signals(number).name)

        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, handler)

    def watch_parents(self, supervisor_pid: int | None, grace_seconds: float) -> None:
        """Stop when torchrun or the supervisor is gone, and leave hard after the grace."""

        def watch() -> None:
            while os.getppid() == self._parent and (
                supervisor_pid is None or psutil.pid_exists(supervisor_pid)
            ):
                time.sleep(PARENT_POLL_SECONDS)
            self.set("the process that started this one is gone")
            time.sleep(grace_seconds)
            os._exit(EXIT_STOPPED)

        threading.Thread(target=watch, daemon=True, name="parent-watch").start()


JobMain = Callable[[JobSpec, Ranks, StopRequest], None]


def run_job_main(main: JobMain) -> NoReturn:
    """Entry of `python -m nanochat_core.jobs.<station> JOB.json`, run once per rank."""
    configure_logging()
    if len(sys.argv) != 2:
        sys.exit("usage: torchrun ... -m nanochat_core.jobs.<station> JOB.json")
    spec = JobSpec.load(Path(sys.argv[1]))
    stop = StopRequest()
    stop.listen()
    # The one place of a job that reads the environment, beside torchrun's own variables.
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)  # noqa: TID251
    stop.watch_parents(int(supervisor) if supervisor else None, spec.execution.grace_seconds)
    leave(_guarded(main, spec, stop))


def _guarded(main: JobMain, spec: JobSpec, stop: StopRequest) -> int:
    try:
        with _joining_in_time(spec):
            timeout_seconds = spec.execution.collective_timeout_seconds
            ranks = init_ranks(spec.execution.device, timeout_seconds=timeout_seconds)
        set_up_torch(spec.execution, ranks.device)
        main(spec, ranks, stop)
        ranks.close()
    except JobStoppedError as stopped:
        log.info("%s", stopped)
        if stop.is_wanted:
            # The launcher may be on another machine, which nobody has asked to stop.
            write_error(Path(spec.work_folder), stopped)
        return EXIT_STOPPED
    except NanochatError as error:
        return _told(spec, error)
    except RuntimeError as error:
        if not tells_of_lost_rank(error):
            raise
        return _told(spec, RanksLostError(lost_message(error, spec.execution)))
    return 0


def _told(spec: JobSpec, error: NanochatError) -> int:
    log.error("%s: %s", type(error).__name__, error)
    write_error(Path(spec.work_folder), error)
    return EXIT_TOLD


def leave(code: int) -> NoReturn:
    """End this process; at once where the process group would wait for ranks that are gone.

    Interpreters that end while gloo is at work abort, and checkpoint threads of a broken world
    would wait for parts that nobody writes.
    """
    if code == 0 or not dist.is_initialized():
        sys.exit(code)
    deadline = time.monotonic() + WRITING_SECONDS
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(max(deadline - time.monotonic(), 0.0))
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def lost_message(error: BaseException, execution: Execution) -> str:
    """Which rank gave up on another one, why, and where to look."""
    who = f"rank {dist.get_rank()}" if dist.is_initialized() else "a rank that wanted to join"
    timeout = execution.collective_timeout_seconds
    return (
        f"{who} has lost another rank, which died or did not answer for {timeout:g} s "
        f"(collective_timeout_seconds): {error}. Look for an earlier error in the logs of the job, "
        "and for memory and the network of the machines; run again to go on from the last "
        "checkpoint"
    )


@contextmanager
def _joining_in_time(spec: JobSpec) -> Iterator[None]:
    """End this process when the process group has not come together in time.

    nccl builds its communicators outside of the watchdog that limits its collectives.
    """
    seconds = spec.execution.collective_timeout_seconds + JOIN_SPARE_SECONDS

    def give_up() -> None:
        error = TimeoutError(f"the process group did not come together within {seconds:g} s")
        os._exit(_told(spec, RanksLostError(lost_message(error, spec.execution))))

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
