"""Riding out the minutes in which a store does not answer."""

import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from nanochat_core.artifacts.threads import is_patience_over
from nanochat_core.errors import StoreUnavailableError

log = logging.getLogger(__name__)

OUTAGE_SECONDS = 90.0
"""Long enough for a server that restarts and for a network that is moved to another line."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
_LOOK_UP_SECONDS = 0.2

Result = TypeVar("Result")


class Outages:
    """Tries again for `OUTAGE_SECONDS`; of each outage one log line tells the start, one the end.

    Shared by the threads of a process, and without a lock, which a forked child could inherit
    taken. `is_outage` says which errors may pass by themselves.
    """

    def __init__(self, url: str, is_outage: Callable[[Exception], bool]) -> None:
        self.url, self.is_outage = url, is_outage
        # At most one entry, its start; what a dictionary does at once needs no lock.
        self._now: dict[str, list[float]] = {}

    def ride(self, action: Callable[[], Result]) -> Result:
        """What `action` returns, once it does.

        Any error that is no outage comes at once; one that does not end is StoreUnavailableError.
        """
        pause, failed_at = FIRST_PAUSE_SECONDS, list[float]()
        while True:
            try:
                result = action()
            except Exception as error:
                if not self.is_outage(error):
                    self._ends(failed_at)
                    raise
                if is_patience_over() or _is_too_long(failed_at):
                    raise self._given_up(error, failed_at) from error
                if not failed_at:
                    failed_at.append(time.monotonic())
                    self._begins(error, failed_at)
            else:
                self._ends(failed_at)
                return result
            # All who wait would else knock at the same moment.
            left = failed_at[0] + OUTAGE_SECONDS - time.monotonic()
            _sleep(min(pause * random.uniform(0.6, 1.0), left))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _begins(self, error: Exception, failed_at: list[float]) -> None:
        if self._now.setdefault("since", failed_at) is failed_at:
            log.warning(
                "the store %s does not answer (%s); trying again for up to %.0f s",
                *(self.url, reason_of(error), OUTAGE_SECONDS),
            )

    def _given_up(self, error: Exception, failed_at: list[float]) -> StoreUnavailableError:
        if self._now.get("since") is failed_at:
            self._now.clear()
        seconds = time.monotonic() - failed_at[0] if failed_at else 0.0
        return StoreUnavailableError(
            f"The store {self.url} does not answer: {reason_of(error)}. Waited {seconds:.0f} s. "
            "Check that it is running and reachable, then run again; finished work is kept."
        )

    def _ends(self, failed_at: list[float]) -> None:
        """Only who has waited knows that it is over: others may have been answered before."""
        since = self._now.pop("since", None) if failed_at else None
        if since is not None:
            seconds = time.monotonic() - since[0]
            log.warning("the store %s answers again after %.1f s", self.url, seconds)


def _is_too_long(failed_at: list[float]) -> bool:
    return bool(failed_at) and time.monotonic() - failed_at[0] >= OUTAGE_SECONDS


def reason_of(error: Any) -> str:
    """One line that says what went wrong."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(reason).split()).rstrip(".")


def _sleep(seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    while (left := ends_at - time.monotonic()) > 0 and not is_patience_over():
        time.sleep(min(left, _LOOK_UP_SECONDS))
