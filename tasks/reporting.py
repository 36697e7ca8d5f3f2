"""What Prefect's pages show of a run: progress, a report of each stage, its model and lineage."""

import logging
import shlex
import time
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from nanochat_core.artifacts.types import ArtifactRef, Manifest
from nanochat_core.report.numbers import duration, pick_key_numbers
from tasks.listening import StageRecord, describe_metrics

UPDATE_SECONDS = 2.0
"""An update is a synchronous call of some 20 ms to the server: never one per step."""
LOG_FILE = "job.log"

logger = logging.getLogger(__name__)
_SERVER_TROUBLE = (httpx.HTTPError, PrefectException)


class ProgressBar:
    """One progress artifact of one stage; made at the first update that is worth it."""

    def __init__(self, station: str) -> None:
        self.station = station
        self._id: UUID | None = None
        self._last_update = time.monotonic()
        self._is_full = False

    def update(self, done: int, total: int, unit: str, message: str) -> None:
        """Show `done` of `total`, at most once per UPDATE_SECONDS, and the end if it was shown."""
        if total <= 0 or self._is_full:
            return
        is_full = done >= total
        now = time.monotonic()
        # A bar that is there has to end full; of a stage of a second none is made.
        if now - self._last_update < UPDATE_SECONDS and not (is_full and self._id):
            return
        self._last_update, self._is_full = now, is_full
        percent = round(min(100.0 * done / total, 100.0), 1)
        text = f"{self.station}: {done:,} of {total:,} {unit}. {message}".strip()
        _try_to_show(f"progress of {self.station}", lambda: self._show(percent, text))

    def _show(self, percent: float, text: str) -> None:
        if self._id is None:
            made: Any = create_progress_artifact(percent, _key(self.station, "progress"), text)
            self._id = made
        else:
            update_progress_artifact(self._id, percent, text)


def publish_report(record: StageRecord, page: str) -> None:
    """Store the stage's page: what it made, from what, with which numbers."""
    description = f"{record.state}: {record.ref.short if record.ref else ''}"
    _try_to_show(
        f"report of {record.station}",
        lambda: create_markdown_artifact(
            page, key=_key(record.station, "report"), description=description
        ),
    )


def publish_run_report(run_id: str, records: Iterable[StageRecord], more: str = "") -> None:
    """Store the run's page, how every stage went, and the table of what came out of it.

    `more` is Markdown that ends the page.
    """
    told = list(records)
    _try_to_show(
        "report of the run",
        lambda: create_markdown_artifact(
            "\n\n".join(filter(None, (run_markdown(run_id, told), more))),
            key="run-report",
            description=f"run {run_id}: {_went(told)}",
        ),
    )
    if rows := lineage_rows(told):
        _try_to_show(
            "lineage of the run",
            lambda: create_table_artifact(
                rows, key="lineage", description=f"run {run_id}: what was made, in order"
            ),
        )


def publish_model(ref: ArtifactRef, store_url: str, names: Iterable[str]) -> None:
    """Store a link to a released model, with how to talk to it."""
    if store_url.startswith("memory:"):
        return
    _try_to_show(
        "link to the model",
        lambda: create_link_artifact(
            model_link(ref, store_url),
            link_text=ref.short,
            key="model",
            description=model_markdown(ref, store_url, list(names)),
        ),
    )


def model_link(ref: ArtifactRef, store_url: str) -> str:
    """Where the files of an artifact are, as a URL."""
    url = store_url if "://" in store_url else f"file://{store_url}"
    return f"{url.rstrip('/')}/{ref.station}/{ref.fingerprint}"


def model_markdown(ref: ArtifactRef, store_url: str, names: list[str]) -> str:
    """What a model is called, and the commands that make it answer."""
    place = shlex.quote(store_url)
    return "\n".join(
        [
            f"The chat model `{ref.short}`, also called {_and(f'`{name}`' for name in names)}.",
            "",
            f"* chat: `nanochat chat {ref.short} --store {place}`",
            f"* serve: `nanochat serve {ref.short} --store {place}`, or",
            f"  `prefect deployment run serve/serve -p model={ref.short} -p store={place}`",
            f"* all about it: `nanochat artifacts show {ref.short} --store {place}`",
            "",
            f"Artifact `{ref.station}/{ref.fingerprint}`, digest `{ref.digest}`.",
        ]
    )


def run_markdown(run_id: str, records: list[StageRecord]) -> str:
    """The page of a run: every stage, what became of it, how long it took."""
    rows = [
        f"| {record.station} | {record.state} | {duration(record.seconds)} | "
        f"{record.ref.short if record.ref else ''} | {_words(record)} |"
        for record in records
    ]
    titles = ("station", "state", "time", "artifact", "numbers")
    kept = f"Kept in the store as run `{run_id}`. {_went(records)}"
    return "\n".join([f"# run {run_id}", "", kept, *_table(*titles, rows=rows)])


def lineage_rows(records: Iterable[StageRecord]) -> list[dict[str, Any]]:
    """A row for each station that made or found an artifact of its own, in the order of the run."""
    return [
        {
            "station": record.station,
            "went": record.state,
            "seconds": round(record.seconds, 1),
            "artifact": record.ref.short,
            "digest": record.ref.digest,
        }
        for record in records
        if record.ref is not None and record.ref.station == record.station
    ]


def stage_markdown(record: StageRecord, manifest: Manifest) -> str:
    """The page of one stage: result, numbers, lineage, files, and where its whole log is."""
    inputs = [f"| {name} | {ref.short} |" for name, ref in sorted(manifest.input_refs.items())]
    numbers = [f"| {name} | {value} |" for name, value in manifest.metrics.items()]
    files = [f"| {file.path} | {file.role} | {file.bytes:,} |" for file in manifest.files]
    return "\n".join(
        [
            f"# {record.station}: {record.state} in {record.seconds:.1f} s",
            "",
            # A paragraph each: the page does not break a long word.
            f"Artifact `{manifest.ref.short}`, manifest {manifest.number}, digest",
            "",
            f"`{manifest.digest}`",
            *_log_lines(manifest),
            *_table("number", "value", rows=numbers),
            *_table("input", "artifact", rows=inputs),
            *_table("file", "role", "bytes", rows=files),
        ]
    )


def _log_lines(manifest: Manifest) -> list[str]:
    if not any(file.path == LOG_FILE for file in manifest.files):
        return []
    return [
        "",
        f"The tab Logs of its task run has some lines; the whole log is the file `{LOG_FILE}` of "
        f"the artifact, in its folder `{manifest.attempt}`.",
    ]


def _words(record: StageRecord) -> str:
    """Numbers of what was made, else what went wrong, as one cell."""
    numbers = describe_metrics(pick_key_numbers(record.station, record.metrics))
    first_line = record.message.strip().partition("\n")[0]
    return (numbers or first_line).replace("|", "\\|")


def _went(records: list[StageRecord]) -> str:
    """`9 cached, 2 made.`"""
    states = [record.state for record in records]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) + "."


def _and(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _key(station: str, what: str) -> str:
    """Of station and what is said of it; the report of the station `report` is just that."""
    return what if station == what else f"{station.replace('_', '-')}-{what}"


def _table(*titles: str, rows: list[str]) -> list[str]:
    if not rows:
        return []
    return ["", f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles), *rows]


def _try_to_show(what: str, show: Callable[[], object]) -> None:
    """Training must not end because a picture of it could not be drawn."""
    try:
        show()
    except _SERVER_TROUBLE as error:
        logger.warning("%s not shown: %s", what, error)
