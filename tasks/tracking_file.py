"""Follow metrics.jsonl: whole lines as they come, joined into one row a step."""

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tasks.tracking_backends import Tracker, Values

POLL_SECONDS = 0.5

log = logging.getLogger(__name__)

Row = tuple[int, Values]


class MetricsFile:
    """Lines as they are added; from the first again once the file was rewritten.

    A resumed job cuts the file back to its checkpoint. Until then it holds steps that the job
    will take again, so nothing is read while its modification time is `stale_mtime`.
    """

    def __init__(self, path: Path, stale_mtime: int = 0) -> None:
        self.path, self._stale_mtime = path, stale_mtime
        self._position = 0
        self._last = b""

    def new_lines(self) -> list[bytes]:
        """Lines since the last call; an unfinished one waits for its end."""
        if not self.path.exists() or self.path.stat().st_mtime_ns == self._stale_mtime:
            return []
        # A later change may fall on the same clock tick; the file is this job's from now on.
        self._stale_mtime = -1
        with self.path.open("rb") as file:
            file.seek(self._position - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._position = 0
            file.seek(self._position)
            *lines, _ = file.read().split(b"\n")
        if lines:
            self._last = lines[-1] + b"\n"
        elif self._position == 0:
            self._last = b""
        self._position += sum(len(line) + 1 for line in lines)
        return lines


class StepRows:
    """Joins the lines of one step, and gives each step once, in order, whatever is replayed."""

    def __init__(self) -> None:
        self._step = -1
        self._values: Values = {}

    @property
    def has_begun(self) -> bool:
        """Whether there was a line yet."""
        return self._step >= 0

    def complete(self, lines: Iterable[bytes]) -> Iterator[Row]:
        """Steps that a later line has shown to be complete."""
        for line in lines:
            step, values = parse(line)
            if step > self._step:
                yield from self.rest()
                self._step = step
            if step == self._step:
                self._values |= values

    def rest(self) -> Iterator[Row]:
        """The step that may not be complete."""
        if self._values:
            yield self._step, self._values
        self._values = {}


def parse(line: bytes) -> Row:
    """Step and values of one line; (-1, nothing) for what is no line of metrics."""
    try:
        values = json.loads(line)
        step = int(values.pop("step"))
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("left out a line that is no JSON object with a step: %.80r", line)
        return -1, {}
    if "val/bpb" in values:
        # The name under which the reference logs it.
        values["val_bpb"] = values["val/bpb"]
    return step, {k: v for k, v in values.items() if isinstance(v, bool | int | float | str)}


def follow(file: MetricsFile, open_tracker: Callable[[], Tracker], ended: threading.Event) -> None:
    """Send rows until the job has ended and the last of them is sent.

    The tracker is opened by the first line: a job that never gets that far leaves no empty run.
    """
    rows, tracker, is_over = StepRows(), None, False
    try:
        while not is_over:
            # Asked before the look, so that the last look comes after the last line.
            is_over = ended.wait(POLL_SECONDS)
            ready = [*rows.complete(file.new_lines()), *(rows.rest() if is_over else ())]
            if tracker is None and rows.has_begun:
                tracker = open_tracker()
            for step, values in ready:
                assert tracker is not None, "rows come after the first line"
                tracker.log(step, values)
    finally:
        if tracker is not None:
            tracker.finish()
