"""A thread of the task that keeps the newest checkpoint in a store elsewhere, for other hosts.

The job knows no store: it writes step checkpoints into its work folder, and this thread uploads
each that is finished. A store that is away costs warnings and, when this host is lost meanwhile,
the steps since the last upload, and does not stop the training before the lease gives up
(`leases.PATIENCE_TTLS`).
"""

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nanochat_core.artifacts.threads import without_patience
from nanochat_core.errors import DamagedFileError, LeaseLostError, StoreError
from tasks.stored_work import StoredWork

LOOK_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 20.0
STOP_SECONDS = 9.0
"""For the last checkpoint after a stop. Prefect kills 30 s after a cancel; the job may have had 13
of them, and the release of the lease may take 5."""
FAILURE_SECONDS = 120.0
"""The same after a failure, when nobody is about to kill this process."""

Say = Callable[[int, str], None]


class _NotWantedError(Exception):
    """The job is done, so its checkpoints are of no use any more."""


class CheckpointSync:
    """Fetches before a job, uploads beside it, and once more when it has not ended well."""

    def __init__(self, stored: StoredWork, say: Say) -> None:
        self.stored, self.say = stored, say
        self._is_done = False
        self._ended = threading.Event()
        self._give_up_at = 0.0
        self._damaged: set[str] = set()

    def fetch(self) -> None:
        """Take over from the host that came furthest, before the job starts."""
        step = self.stored.fetch()
        if step is not None:
            self.say(logging.WARNING, f"goes on from step {step:,}, which another start had saved")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Upload while the block runs; the last checkpoint, too, when it raises."""
        # Prefect finds the run to which a log line belongs in the context.
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run, args=(self._run,), name="checkpoint-sync", daemon=True
        )
        thread.start()
        try:
            yield
        except BaseException as error:
            is_stop = not isinstance(error, Exception)
            self._end(thread, STOP_SECONDS if is_stop else FAILURE_SECONDS)
            raise
        self._is_done = True
        self._end(thread, FAILURE_SECONDS)

    def _end(self, thread: threading.Thread, seconds: float) -> None:
        self._give_up_at = time.monotonic() + seconds
        self._ended.set()
        thread.join(seconds)
        if not self._is_done and (left := self._missing()):
            self.say(
                logging.WARNING,
                f"{left[0].name} is not in the store: only this machine can go on from there",
            )

    def _run(self) -> None:
        pause, is_said = LOOK_SECONDS, False
        # A loop that tries again is patience enough.
        with without_patience():
            while True:
                is_last = self._ended.wait(pause)
                try:
                    self._upload_new()
                except (LeaseLostError, _NotWantedError):
                    return  # the task finds out by itself
                except (StoreError, OSError) as error:
                    if not is_said:
                        self.say(logging.WARNING, f"a checkpoint was not uploaded yet: {error}")
                    pause, is_said = min(2 * pause, LONGEST_PAUSE_SECONDS), True
                else:
                    pause, is_said = LOOK_SECONDS, False
                    if is_last:
                        return
                if is_last:
                    if time.monotonic() >= self._give_up_at:
                        return
                    time.sleep(LOOK_SECONDS)

    def _upload_new(self) -> None:
        for step in self._missing():
            self._check()
            try:
                self.stored.upload(step, self._check)
            except FileNotFoundError:
                continue  # pruned meanwhile: a newer one is there
            except DamagedFileError as error:
                self._damaged.add(step.name)
                self.say(logging.WARNING, f"{step.name} cannot be uploaded: {error}")

    def _missing(self) -> list[Path]:
        return [step for step in self.stored.missing() if step.name not in self._damaged]

    def _check(self) -> None:
        self.stored.lease.check()
        if self._is_done:
            raise _NotWantedError
