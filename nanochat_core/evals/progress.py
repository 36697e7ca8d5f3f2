"""How far an evaluation is, and the place where it notices that it should stop."""

from collections.abc import Callable
from pathlib import Path

from nanochat_core.errors import JobStoppedError
from nanochat_core.logs import Progress


class EvalProgress:
    """Counts pieces of work of several phases against one total.

    Nothing of an evaluation is saved before its end, so a stop request just ends it, at the next
    piece, with JobStoppedError. No path: nothing is written (ranks other than the first).
    """

    def __init__(self, path: Path | None, total: int, stop_requested: Callable[[], bool]) -> None:
        self._file = Progress(path, total, "pieces")
        self._stop_requested = stop_requested
        self._total = total
        self._phase_start = 0
        self._done = 0

    def start_phase(self) -> None:
        """From here on, `update` counts from 0 again."""
        self._phase_start = self._done

    def update(self, done_in_phase: int, message: str) -> None:
        """Record how many pieces of this phase are done."""
        if self._stop_requested():
            raise JobStoppedError(
                "stopped on request; this evaluation goes on after the last whole task"
            )
        self._done = min(self._phase_start + done_in_phase, self._total)
        self._file.update(self._done, message)

    def finish(self) -> None:
        """Everything is done, whatever share of it the other ranks took."""
        self._file.update(self._total)
