"""What every torchrun job does at its door: spec, logging, signals, ranks, exit codes.

Exit codes: 0 done (`outputs.json` is written), 2 a mistake of the user (`error.json` says which),
143 stopped on request with the progress saved; anything else means that the process was lost.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil
import torch

from nanochat_core.config.job import ERROR_FILE, JobSpec
from nanochat_core.distributed.ranks import Ranks, init_ranks
from nanochat_core.errors import JobStoppedError, NanochatError
from nanochat_core.logs import configure_logging

log = logging.getLogger(__name__)

EXIT_USER_ERROR = 2
EXIT_STOPPED = 143
PARENT_POLL_SECONDS = 0.5
SUPERVISOR_VARIABLE = "NANOCHAT_SUPERVISOR_PID"


class StopRequest:
    """Whether this process was asked to stop: by a signal, or because its parents died."""

    def __init__(self) -> None:
        self._event = threading.Event()

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
            self.set(signal.Signals(number).name)

        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, handler)

    def watch_parents(self, supervisor_pid: int | None, grace_seconds: float) -> None:
        """Stop when torchrun or the supervisor is gone, and leave hard after the grace."""
        parent = os.getppid()

        def watch() -> None:
            while os.getppid() == parent and (
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
    sys.exit(_guarded(main, spec, stop))


def _guarded(main: JobMain, spec: JobSpec, stop: StopRequest) -> int:
    try:
        ranks = init_ranks(spec.execution.device)
        _set_up_torch(spec, ranks)
        main(spec, ranks, stop)
        ranks.close()
    except JobStoppedError as stopped:
        log.info("%s", stopped)
        return EXIT_STOPPED
    except NanochatError as error:
        log.error("%s: %s", type(error).__name__, error)
        _write_error(Path(spec.work_folder), error)
        return EXIT_USER_ERROR
    return 0


def _write_error(work_folder: Path, error: NanochatError) -> None:
    """Write `error.json`; every rank may do so at the same time, and one of them is kept whole."""
    body = {"type": type(error).__name__, "message": str(error)}
    temporary = work_folder / f"{ERROR_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(body), encoding="utf-8")
    os.replace(temporary, work_folder / ERROR_FILE)


def _set_up_torch(spec: JobSpec, ranks: Ranks) -> None:
    torch.set_num_threads(spec.execution.threads)
    if ranks.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: RECIPE section 1
    elif ranks.device.type == "cpu" and spec.execution.threads > 1:
        # Compiled CPU code adds embedding gradients atomically: two threads would differ from
        # run to run (LOG.md).
        torch.use_deterministic_algorithms(True)
