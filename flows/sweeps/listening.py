"""Who watches a sweep: hears of its points, and between that of the stages of each."""

from dataclasses import dataclass, field

from tasks.listening import Listener, StageRecord, current_listener


@dataclass(frozen=True)
class Told:
    """How one point went: its stages, or what ended it."""

    label: str
    seconds: float
    records: dict[str, StageRecord] = field(default_factory=dict)
    error: str = ""
    seconds_left: float | None = None
    """Until all points are made, about; None where nobody can tell."""

    @property
    def state(self) -> str:
        """As of a stage: failed, cached, resumed or made."""
        states = {record.state for record in self.records.values()}
        if self.error:
            return "failed"
        if states <= {"cached"}:
            return "cached"
        return "resumed" if "resumed" in states else "made"


class SweepListener(Listener):
    """Hears what the points of a sweep do; this one does nothing about it."""

    def sweep_planned(self, num_points: int, words: str, seconds: float | None) -> None:
        """So many points, and beginnings of points, will be made, which takes about so long."""

    def point_started(self, label: str) -> None:
        """A point begins; what stages tell from now on is of this one."""

    def point_started_aside(self, label: str, log: str) -> None:
        """A point begins beside others, in a process of its own with a log file."""

    def point_progressed(self, label: str, done: int, total: int, unit: str, message: str) -> None:
        """A point that is made beside others has come so far with its present stage."""

    def point_ended(self, told: Told) -> None:
        """A point has ended, however it went."""


def sweep_listener() -> SweepListener:
    """The listener of this context, if it knows of sweeps, or one that ignores everything."""
    found = current_listener()
    return found if isinstance(found, SweepListener) else SweepListener()


class Recorder(Listener):
    """Keeps how the stages of one point ended, and passes everything on."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.records: dict[str, StageRecord] = {}

    def planned(self, stations: tuple[str, ...]) -> None:
        """Pass it on."""
        self._listener.planned(stations)

    def started(self, station: str) -> None:
        """Pass it on."""
        self._listener.started(station)

    def progressed(self, station: str, done: int, total: int, unit: str, message: str) -> None:
        """Pass it on."""
        self._listener.progressed(station, done, total, unit, message)

    def logged(self, station: str, level: int, line: str) -> None:
        """Pass it on."""
        self._listener.logged(station, level, line)

    def ended(self, record: StageRecord) -> None:
        """Keep it, and pass it on."""
        self.records[record.station] = record
        self._listener.ended(record)
