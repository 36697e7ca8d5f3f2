"""Logging set-up for a process, and the two small files through which jobs are watched."""

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any


def configure_logging(level: int = logging.INFO) -> None:
    """Send log lines of this process to stderr; call it once, from an entry point."""
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )


class JsonLines:
    """An append-only file of one JSON object a line, flushed after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Append one object."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Progress:
    """A file that says how far a job is, replaced whole, at most once per `min_seconds`."""

    def __init__(self, path: Path | None, total: int, unit: str, min_seconds: float = 0.5) -> None:
        self.path, self.total, self.unit, self.min_seconds = path, total, unit, min_seconds
        self._last_write = -1e9

    def update(self, done: int, message: str = "") -> None:
        """Record `done` of `total`; the last one is always written. No path: nothing happens."""
        now = time.monotonic()
        if self.path is None or (now - self._last_write < self.min_seconds and done < self.total):
            return
        self._last_write = now
        values = {"done": done, "total": self.total, "unit": self.unit, "message": message}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(values), encoding="utf-8")
        os.replace(temporary, self.path)
