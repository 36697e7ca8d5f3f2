"""What Prefect's pages show of a stage: one progress bar, and one report at its end."""

import logging
import time
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from nanochat_core.artifacts.types import Manifest
from tasks.listening import StageRecord, describe_metrics

UPDATE_SECONDS = 2.0
"""An update is a synchronous call of some 20 ms to the server: never one per step."""

logger = logging.getLogger(__name__)
_SERVER_TROUBLE = (httpx.HTTPError, PrefectException)


class ProgressBar:
    """One progress artifact of one stage; made at the first update that is worth it."""

    def __init__(self, station: str) -> None:
        self.station = station
        self._id: UUID | None = None
        self._last_update = time.monotonic()

    def update(self, done: int, total: int, unit: str, message: str) -> None:
        """Show `done` of `total`, at most once per UPDATE_SECONDS."""
        now = time.monotonic()
        if now - self._last_update < UPDATE_SECONDS or total <= 0:
            return
        self._last_update = now
        percent = round(min(100.0 * done / total, 100.0), 1)
        text = f"{done:,} of {total:,} {unit}. {message}".strip()
        try:
            if self._id is None:
                made: Any = create_progress_artifact(percent, _key(self.station, "progress"), text)
                self._id = made
            else:
                update_progress_artifact(self._id, percent, text)
        except _SERVER_TROUBLE as error:
            # Training must not end because a picture of it could not be drawn.
            logger.warning("progress of %s not shown: %s", self.station, error)


def publish_report(record: StageRecord, page: str) -> None:
    """Store the stage's page: what it made, from what, with which numbers."""
    description = f"{record.state}: {record.ref.short if record.ref else ''}"
    try:
        create_markdown_artifact(page, key=_key(record.station, "report"), description=description)
    except _SERVER_TROUBLE as error:
        logger.warning("report of %s not shown: %s", record.station, error)


def publish_run_report(run_id: str, records: Iterable[StageRecord]) -> None:
    """Store the run's page: every stage, what became of it, how long it took."""
    rows = [
        f"| {record.station} | {record.state} | {record.seconds:.1f} | "
        f"{record.ref.short if record.ref else ''} | {describe_metrics(record.metrics)} |"
        for record in records
    ]
    titles = ("station", "state", "seconds", "artifact", "numbers")
    try:
        create_markdown_artifact(
            "\n".join([f"# run {run_id}", *_table(*titles, rows=rows)]),
            key="run-report",
            description=f"all stages of run {run_id}",
        )
    except _SERVER_TROUBLE as error:
        logger.warning("report of the run not shown: %s", error)


def _key(station: str, what: str) -> str:
    """Of station and what is said of it; the report of the station `report` is just that."""
    return what if station == what else f"{station.replace('_', '-')}-{what}"


def stage_markdown(record: StageRecord, manifest: Manifest) -> str:
    """The page of one stage: result, numbers, lineage, files."""
    inputs = [f"| {name} | {ref.short} |" for name, ref in sorted(manifest.input_refs.items())]
    numbers = [f"| {name} | {value} |" for name, value in manifest.metrics.items()]
    files = [f"| {file.path} | {file.role} | {file.bytes:,} |" for file in manifest.files]
    return "\n".join(
        [
            f"# {record.station}: {record.state} in {record.seconds:.1f} s",
            f"`{manifest.station}/{manifest.fingerprint}`, digest `{manifest.digest}`",
            *_table("number", "value", rows=numbers),
            *_table("input", "artifact", rows=inputs),
            *_table("file", "role", "bytes", rows=files),
        ]
    )


def _table(*titles: str, rows: list[str]) -> list[str]:
    if not rows:
        return []
    return ["", f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles), *rows]
