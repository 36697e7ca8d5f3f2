"""What a person sees of a run: a live table on a terminal, plain lines anywhere else."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.wording import duration, key_numbers
from tasks.listening import Listener, StageRecord

PROGRESS_LINE_SECONDS = 10.0
BAR_WIDTH = 20
MIN_WIDTH = 40
ECHO_WIDTH = 3
WIDE = 80
"""Columns from which a terminal has room for a whole bar."""
STATE_STYLES = {
    "waiting": "dim",
    "running": "bold cyan",
    "cached": "blue",
    "made": "green",
    "resumed": "green",
    "stopped": "yellow",
    "failed": "bold red",
}


@dataclass
class StageView:
    """What is known about one stage while it runs."""

    station: str
    state: str = "waiting"
    seconds: float = 0.0
    done: int = 0
    total: int = 0
    unit: str = ""
    note: str = ""
    started: float = 0.0
    first: tuple[int, float] | None = None
    """Where progress stood, and when, at the first look: a resumed stage starts in the middle."""

    def progress(self, done: int, total: int, unit: str, message: str, now: float) -> None:
        """Take in one report."""
        if self.first is None or done < self.first[0]:
            self.first = (done, now)
        self.done, self.total, self.unit, self.note = done, total, unit, message

    def seconds_left(self, now: float) -> float | None:
        """A guess from the pace so far; None while there is no pace."""
        if self.first is None or self.done <= self.first[0] or self.total <= 0:
            return None
        pace = (now - self.first[1]) / (self.done - self.first[0])
        return pace * (self.total - self.done)


def summary(record: StageRecord) -> str:
    """How a stage ended, on one line: what went wrong, what it published, or its numbers."""
    if record.state == "stopped":
        return "continues when the same command is run again"
    if record.message:
        return record.message.partition("\n")[0]
    return key_numbers(record.station, record.metrics)


class PlainView(Listener):
    """A line at the start and at the end of a stage, and one of progress every ten seconds."""

    def __init__(self, output: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._output, self._clock = output, clock
        self._stages: dict[str, StageView] = {}
        self._last_line = 0.0
        self.records: dict[str, StageRecord] = {}
        self.conclusions: list[str] = []

    def __enter__(self) -> "PlainView":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, line: str) -> None:
        """Write one line at once."""
        self._output.write(line + "\n")
        self._output.flush()

    def started(self, station: str) -> None:
        """Begin a stage."""
        self._stages[station] = StageView(station, state="running", started=self._clock())
        self._last_line = self._clock()
        self.say(f"{station:<14} started")

    def progressed(self, station: str, done: int, total: int, unit: str, message: str) -> None:
        """Say how far it is, unless that was said a moment ago."""
        now = self._clock()
        stage = self._stages[station]
        stage.progress(done, total, unit, message, now)
        if now - self._last_line < PROGRESS_LINE_SECONDS or total <= 0:
            return
        self._last_line = now
        left = stage.seconds_left(now)
        eta = f", about {duration(left)} left" if left is not None else ""
        note = f"; {message}" if message else ""
        count = f"{done:,} of {total:,} {unit}".rstrip()
        self.say(f"{station:<14} {count} ({done / total:.0%}{eta}){note}")

    def logged(self, station: str, level: int, line: str) -> None:
        """Show warnings; the rest is in the log file and in Prefect."""
        if level >= logging.WARNING:
            self.say(f"{station:<14} {line}")

    def ended(self, record: StageRecord) -> None:
        """End a stage."""
        self.records[record.station] = record
        line = f"{record.station:<14} {record.state} in {duration(record.seconds)}"
        self.say(f"{line}  {summary(record)}".rstrip())

    def concluded(self, line: str) -> None:
        """Keep it for the end."""
        self.conclusions.append(line)


class LiveView(Listener):
    """A table of all stages that is drawn again a few times a second."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._stages: dict[str, StageView] = {}
        self._live = Live(get_renderable=self.table, console=console, refresh_per_second=4)
        self.records: dict[str, StageRecord] = {}
        self.conclusions: list[str] = []

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Write one line above the table."""
        self._console.print(Text(line))

    def planned(self, stations: tuple[str, ...]) -> None:
        """Show every stage as waiting."""
        for station in stations:
            self._stages.setdefault(station, StageView(station))

    def started(self, station: str) -> None:
        """Begin a stage."""
        self._stages[station] = StageView(station, state="running", started=self._clock())

    def progressed(self, station: str, done: int, total: int, unit: str, message: str) -> None:
        """Move its bar."""
        self._stages[station].progress(done, total, unit, message, self._clock())

    def logged(self, station: str, level: int, line: str) -> None:
        """Show warnings above the table; the rest is in the log file and in Prefect."""
        if level >= logging.WARNING:
            self.say(f"{station}: {line}")

    def ended(self, record: StageRecord) -> None:
        """End a stage."""
        self.records[record.station] = record
        stage = self._stages[record.station]
        stage.state, stage.seconds = record.state, record.seconds
        stage.note = summary(record)

    def concluded(self, line: str) -> None:
        """Keep it for the end."""
        self.conclusions.append(line)

    def table(self) -> Group:
        """The table as it stands now."""
        now = self._clock()
        # Room for the ^C that a terminal echoes: at the margin it would wrap and shift the table.
        width = max(self._console.width - ECHO_WIDTH, MIN_WIDTH)
        table = Table(box=None, pad_edge=False, width=width)
        # Fixed widths: a table that is drawn again four times a second must not jump.
        table.add_column("station", no_wrap=True, min_width=13)
        table.add_column("state", no_wrap=True, min_width=7)
        table.add_column("time", no_wrap=True, min_width=8)
        table.add_column("", ratio=1)
        for stage in list(self._stages.values()):
            is_running = stage.state == "running"
            seconds = now - stage.started if is_running else stage.seconds
            table.add_row(
                stage.station,
                Text(stage.state, style=STATE_STYLES.get(stage.state, "")),
                "" if stage.state == "waiting" else duration(seconds),
                self._progress(stage, now) if is_running else _one_line(stage.note),
            )
        return Group(table)

    def _progress(self, stage: StageView, now: float) -> Table | Text:
        """Bar, time left and what is being done, as far as there is room; the bar comes first."""
        if stage.total <= 0:
            return Text("starting", style="dim")
        left = stage.seconds_left(now)
        words = [f"{stage.done / stage.total:.0%}"]
        words += [] if left is None else [f"{duration(left)} left"]
        words += [stage.note] if stage.note else []
        line = Table.grid(padding=(0, 1, 0, 0))
        width = BAR_WIDTH if self._console.width >= WIDE else BAR_WIDTH // 2
        line.add_column(no_wrap=True, min_width=width + 1)
        line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(ProgressBar(stage.total, stage.done, width=width), ", ".join(words))
        return line


def _one_line(text: str) -> Text:
    return Text(text, overflow="ellipsis", no_wrap=True)


View = PlainView | LiveView


def make_view(output: TextIO) -> View:
    """The live table where the output is a terminal that can show it, else plain lines."""
    console = Console(file=output)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console)
    return PlainView(output)


class ShowWarnings(logging.Handler):
    """Lets people see why, say, an artifact that was there is made again."""

    def __init__(self, view: View) -> None:
        super().__init__(logging.WARNING)
        self._view = view
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one warning; a stage that looks again before it publishes says it again."""
        message = record.getMessage()
        if message != self._last:
            self._view.say(message)
        self._last = message
