"""What an evaluation finds goes into the store beside it: nobody waits for a store that is away.

A thread does that, so a cancel, a lost lease or the end of a job is noticed at once meanwhile.
"""

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nanochat_core.artifacts.threads import without_patience

LOOK_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 20.0
STOP_SECONDS = 5.0
"""For the last scores after a stop. Prefect kills 30 s after a cancel; the job may have had 13 of
them, and the release of the lease may take 5."""
END_SECONDS = 60.0
"""The same when all is done, and nobody is about to kill this process."""

Publish = Callable[[], bool]
"""Puts what is new into the store; whether that took it."""


@contextmanager
def publishing(publish: Publish) -> Iterator[None]:
    """Call `publish` again and again while the block runs, and once more at its end.

    A store that does not take what is new is asked less often, and not waited for when the block
    raises.
    """
    beside = _Beside(publish)
    # Prefect finds the run to which a log line belongs in the context.
    target = contextvars.copy_context().run
    thread = threading.Thread(target=target, args=(beside.run,), name="scores", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        beside.ended.set()
        if not beside.is_away:
            thread.join(STOP_SECONDS)
        raise
    beside.ended.set()
    thread.join(END_SECONDS)


class _Beside:
    """The thread's work."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self.ended, self.is_away = threading.Event(), False

    def run(self) -> None:
        """Until the end of the block, and once after it."""
        pause, is_last = LOOK_SECONDS, False
        # A loop that tries again is patience enough.
        with without_patience():
            while not is_last:
                is_last = self.ended.wait(pause)
                self.is_away = not self._publish()
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS) if self.is_away else LOOK_SECONDS
