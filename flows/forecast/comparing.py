"""Afterwards: what was predicted beside what happened."""

from collections.abc import Mapping

from flows.forecast.types import ComparedRow, Forecast, total
from tasks.listening import StageRecord

ENDED = ("cached", "made", "resumed")
WHOLE = "in all"


def compared(found: Forecast, records: Mapping[str, StageRecord]) -> list[ComparedRow]:
    """A row for each station that came to its end, and one for all of them together.

    Without the start of the command, which no station's record tells of.
    """
    rows = [
        ComparedRow(
            station=station.station,
            predicted=station.seconds,
            actual_seconds=record.seconds,
            state=record.state,
        )
        for station in found.stations
        if (record := records.get(station.station)) is not None and record.state in ENDED
    ]
    if len(rows) < 2:
        return rows
    whole = ComparedRow(
        station=WHOLE,
        predicted=total(row.predicted for row in rows),
        actual_seconds=sum(row.actual_seconds for row in rows),
    )
    return [*rows, whole]
