"""How far a command is that moves or reads many bytes: a bar on a terminal, else some lines."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from flows.wording import duration, size

LINE_SECONDS = 10.0


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Inside, call what it gives with every so many bytes that are done of `total`.

    It writes to stderr, so that the lines of the command can be piped.
    """
    if sys.stderr.isatty() and total > 0:
        with _bar(what, total) as advance:
            yield advance
    else:
        yield _Lines(what, total).advance


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda num_bytes: progress.advance(task, num_bytes)


class _Lines:
    """A line every ten seconds, with a guess of what is left."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._start = self._said = time.monotonic()

    def advance(self, num_bytes: int) -> None:
        """Count, and say it unless that was done a moment ago."""
        self.done += num_bytes
        now = time.monotonic()
        if now - self._said < LINE_SECONDS or not self.done:
            return
        self._said = now
        left = (now - self._start) / self.done * (self.total - self.done)
        typer.echo(
            f"{self.what}: {size(self.done)} of {size(self.total)}, about {duration(left)} left",
            err=True,
        )
