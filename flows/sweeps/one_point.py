"""One point of a sweep in a process of its own: `python -m flows.sweeps.one_point FOLDER`.

The folder says which; what happens is told there, one JSON object a line.
"""

import json
import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from flows.parameters import parse_parameters
from flows.sweeps.making import make_point
from flows.sweeps.points import Point
from flows.sweeps.side_by_side import EVENTS_FILE, POINT_FILE
from flows.terminal import PlainView
from tasks.listening import StageRecord

EXIT_FAILED, EXIT_TERMINATED = 1, 143


class Telling(PlainView):
    """Says what a person may want to read in the log, and what the sweep has to know."""

    def __init__(self, log: TextIO, events: TextIO) -> None:
        super().__init__(log)
        self._events = events

    def tell(self, **event: Any) -> None:
        """Write one event at once."""
        self._events.write(json.dumps(event) + "\n")
        self._events.flush()

    def progressed(self, station: str, done: int, total: int, unit: str, message: str) -> None:
        """Say it, and pass it on."""
        super().progressed(station, done, total, unit, message)
        self.tell(station=station, done=done, total=total, unit=unit, message=message)

    def ended(self, record: StageRecord) -> None:
        """Say it, and pass it on."""
        super().ended(record)
        self.tell(record=record.model_dump(mode="json"))


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)


def main(folder: Path) -> int:
    """Make the point; the exit code says whether that went well."""
    signal.signal(signal.SIGTERM, _terminate)
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
    told = json.loads((folder / POINT_FILE).read_bytes())
    point = Point(told["label"], {}, parse_parameters(told["parameters"]))
    with (folder / EVENTS_FILE).open("a", encoding="utf-8") as events:
        telling = Telling(sys.stdout, events)
        found = make_point(point, telling)
        if found.error:
            telling.say(f"failed: {found.error}")
            telling.tell(error=found.error)
    return EXIT_FAILED if found.error else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
