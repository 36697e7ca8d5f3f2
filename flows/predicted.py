"""What was predicted of a run at its start, and how that compares with what it took."""

from collections.abc import Mapping

from prefect import get_run_logger

from flows.forecast.comparing import WHOLE, compared
from flows.forecast.forecasting import forecast
from flows.forecast.page import compared_markdown, span
from flows.forecast.types import ComparedRow, Forecast
from flows.parameters import ResolvedRun
from flows.wording import duration
from nanochat_core.artifacts.store import ArtifactStore
from tasks.listening import StageRecord

Records = Mapping[str, StageRecord]


def predicted(resolved: ResolvedRun, store: ArtifactStore) -> Forecast | None:
    """The forecast of a run that starts now; None, and a word in the log, where there is none."""
    try:
        return forecast(resolved, store)
    except Exception as error:  # noqa: BLE001  a run must not end for want of a forecast
        get_run_logger().warning("nothing could be predicted of this run: %r", error)
        return None


def comparison_page(found: Forecast | None, records: Records) -> str:
    """Predicted against actual as Markdown; empty for a run that made nothing."""
    rows = _rows(found, records)
    return "\n".join(["## Predicted and actual", "", compared_markdown(rows)]) if rows else ""


def comparison_line(found: Forecast | None, records: Records) -> str:
    """The same for all stages together, on one line."""
    whole = [row for row in _rows(found, records) if row.station == WHOLE]
    if not whole:
        return ""
    row = whole[0]
    return (
        f"Stages took {duration(row.actual_seconds)}; predicted were "
        f"{duration(row.predicted.mid)} ({span(row.predicted)})"
    )


def _rows(found: Forecast | None, records: Records) -> list[ComparedRow]:
    if found is None or all(record.state == "cached" for record in records.values()):
        return []
    return compared(found, records)
