"""What a person sees of a sweep: a line for each point, and the stages of the one under way."""

import logging
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console, Group
from rich.text import Text

from flows.sweeps.listening import SweepListener, Told
from flows.terminal import LiveView, PlainView
from flows.wording import duration, key_numbers
from tasks.listening import StageRecord

NUMBERS_OF = ("chat_eval_rl", "chat_eval_sft", "base_eval", "pretrain")
"""The first of these that a point has made says how good it is."""


class Counted:
    """Which points there are and how many have ended, in the words of both views."""

    def __init__(self) -> None:
        self._num_points = self._num_ended = 0

    def planned(self, num_points: int, words: str, seconds: float | None) -> str:
        """`3 points; about 40 s`."""
        self._num_points = num_points
        return words if not seconds or seconds < 1 else f"{words}; about {duration(seconds)}"

    def started(self, label: str) -> str:
        """`[2/3] depth=2`."""
        return f"[{self._num_ended + 1}/{self._num_points}] {label}"

    def ended(self, told: Told) -> str:
        """`[2/3] depth=2  made in 20 s  val/bpb 2.1; about 40 s left`."""
        name = self.started(told.label)
        self._num_ended += 1
        went = "cached" if told.state == "cached" else f"{told.state} in {duration(told.seconds)}"
        line = f"{name}  {went}  {told.error.partition(chr(10))[0] or _numbers(told)}".rstrip()
        is_last = self._num_ended >= self._num_points
        if is_last or told.seconds_left is None or told.seconds_left < 1:
            return line
        return f"{line}; about {duration(told.seconds_left)} left"


def _numbers(told: Told) -> str:
    for station in NUMBERS_OF:
        if record := told.records.get(station):
            return key_numbers(station, record.metrics)
    return ""


class PlainSweepView(SweepListener, PlainView):
    """Lines: one at the end of each point, and between those of stages that had work to do."""

    def __init__(self, output: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        PlainView.__init__(self, output, clock)
        self._points = Counted()
        self._title = ""
        self._quiet: set[str] = set()
        """Stages that were entered and have had nothing to do so far."""

    def sweep_planned(self, num_points: int, words: str, seconds: float | None) -> None:
        """Say how much there is to do."""
        self.say(self._points.planned(num_points, words, seconds))

    def point_started(self, label: str) -> None:
        """Wait whether there is anything to do."""
        self._title = self._points.started(label)

    def point_started_aside(self, label: str, log: str) -> None:
        """Say which, and where more is to be read."""
        super().started(label)
        self.say(f"{label:<14} log: {log}")

    def point_progressed(self, label: str, done: int, total: int, unit: str, message: str) -> None:
        """Say how far it is, now and then."""
        super().progressed(label, done, total, unit, message)

    def point_ended(self, told: Told) -> None:
        """Say how it went."""
        self._title = ""
        self.say(self._points.ended(told))

    def started(self, station: str) -> None:
        """Wait whether there is anything to do."""
        self._quiet.add(station)

    def progressed(self, station: str, done: int, total: int, unit: str, message: str) -> None:
        """Say that it has begun, and then how far it is."""
        self._say_started(station)
        super().progressed(station, done, total, unit, message)

    def logged(self, station: str, level: int, line: str) -> None:
        """Show warnings."""
        if level >= logging.WARNING:
            self._say_started(station)
        super().logged(station, level, line)

    def ended(self, record: StageRecord) -> None:
        """Say how it went, unless everything was there."""
        if record.state == "cached":
            self._quiet.discard(record.station)
            return
        self._say_started(record.station)
        super().ended(record)

    def _say_started(self, station: str) -> None:
        if station not in self._quiet:
            return
        if self._title:
            self.say(self._title)
            self._title = ""
        self._quiet.discard(station)
        super().started(station)


class LiveSweepView(SweepListener, LiveView):
    """Lines of the points that have ended, and under them a table of what is being done."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._points = Counted()
        # Before the table is asked for, which happens while it is set up.
        self._title = "looking at what is there already"
        LiveView.__init__(self, console, clock)
        # What a point has to say when it has ended is its one line.
        self._live.transient = True

    def sweep_planned(self, num_points: int, words: str, seconds: float | None) -> None:
        """Say how much there is to do."""
        self._title = ""
        self.say(self._points.planned(num_points, words, seconds))

    def point_started(self, label: str) -> None:
        """A table of its stages."""
        self._stages.clear()
        self._title = self._points.started(label)

    def point_started_aside(self, label: str, _log: str) -> None:
        """A row of its own."""
        self._title = "side by side:"
        self.started(label)

    def point_progressed(self, label: str, done: int, total: int, unit: str, message: str) -> None:
        """Move its bar."""
        self.progressed(label, done, total, unit, message)

    def point_ended(self, told: Told) -> None:
        """One line, and no table of it any more."""
        if self._stages.pop(told.label, None) is None:
            self._stages.clear()
            self._title = ""
        self.say(self._points.ended(told))

    def table(self) -> Group:
        """The table as it stands now, under the name of its point."""
        title = [Text(self._title)] if self._title else []
        if not self._stages:
            return Group(*title)
        return Group(*title, *super().table().renderables)


SweepView = PlainSweepView | LiveSweepView


def make_sweep_view(output: TextIO) -> SweepView:
    """The live table where the output is a terminal that can show it, else plain lines."""
    console = Console(file=output)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveSweepView(console)
    return PlainSweepView(output)
