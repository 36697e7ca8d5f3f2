"""What a forecast says: every station with time, money, memory and bytes, and where from."""

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from nanochat_core.config.base import Config

State = Literal["cached", "resume", "run", "depends"]
"""In the store, to go on, to be made, or cached if a forced station comes out as before."""
Source = Literal["store", "similar", "elsewhere", "bench", "reference"]
"""Where a time comes from, the firmest first (`DESCRIPTIONS` of `flows.forecast.page`)."""

TIED = 0.5
"""How much the errors of two stations have in common: a busy machine slows all of them."""
SECONDS_PER_HOUR = 3600.0


class Range(Config):
    """A number with how low and how high it may well come out."""

    low: float = Field(ge=0)
    mid: float = Field(ge=0)
    high: float = Field(ge=0)

    @classmethod
    def around(cls, mid: float, spread: float) -> "Range":
        """From `mid` divided by `spread` to `mid` times `spread`."""
        return cls(low=mid / spread, mid=mid, high=mid * spread)

    def times(self, factor: float) -> "Range":
        """The same in another unit."""
        return Range(low=self.low * factor, mid=self.mid * factor, high=self.high * factor)

    def plus(self, seconds: float) -> "Range":
        """The same, moved."""
        return Range(low=self.low + seconds, mid=self.mid + seconds, high=self.high + seconds)

    def holds(self, value: float) -> bool:
        """Whether a value is inside."""
        return self.low <= value <= self.high


def total(ranges: Iterable[Range]) -> Range:
    """The sum of ranges whose errors are neither independent nor all the same."""
    parts = list(ranges)
    mid = sum(part.mid for part in parts)
    down = _together([part.mid - part.low for part in parts])
    up = _together([part.high - part.mid for part in parts])
    return Range(low=max(mid - down, 0.0), mid=mid, high=mid + up)


def _together(errors: list[float]) -> float:
    apart = sum(error * error for error in errors)
    return math.sqrt((1 - TIED) * apart + TIED * sum(errors) ** 2)


class StationForecast(Config):
    """What one station will take."""

    station: str
    state: State
    from_step: int | None = Field(None, description="checkpoint that it goes on from")
    num_steps: int = Field(0, description="training steps of the whole station")
    seconds: Range
    money: Range | None = None
    memory_bytes: int = Field(0, description="peak of one process, on its device")
    download_bytes: int = 0
    disk_bytes: int = Field(0, description="files of its artifact that are not there yet")
    work_bytes: int = Field(0, description="checkpoints beside that while it runs")
    source: Source | None = None
    why: str = Field("", description="what the time was worked out from")


class Forecast(Config):
    """A run before it is paid for."""

    preset: str
    machine: str = Field(description="what the times are for")
    busy: float = Field(0.0, ge=0, description="processes that want a core now, by cores")
    pools: dict[str, str] = Field(
        {}, description="station -> work pool that makes it, for times as if on that machine, too"
    )
    price_per_hour: float | None = None
    stations: tuple[StationForecast, ...]
    overhead_seconds: Range = Field(description="the command around the stations: Prefect, imports")
    seconds: Range
    money: Range | None = None
    memory_bytes: int
    download_bytes: int
    disk_bytes: int = Field(description="needed while it runs, at most")

    def station(self, name: str) -> StationForecast | None:
        """The row of a station."""
        return next((each for each in self.stations if each.station == name), None)


class ComparedRow(Config):
    """One prediction beside what happened."""

    station: str
    predicted: Range
    actual_seconds: float
    state: str = Field("", description="cached, made, resumed, as it came")

    @property
    def is_inside(self) -> bool:
        """Whether the range covers it; under a second nobody would notice."""
        return self.predicted.holds(self.actual_seconds) or (
            abs(self.actual_seconds - self.predicted.mid) < 1.0
        )
