"""Two runs side by side: where they part, and what became of times and numbers."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from flows.causes import Cause, Side, Tracer, own_causes, place_changes
from flows.differing import FieldChange, changes
from flows.presets import MAKING_STATIONS, STATIONS
from nanochat_core.artifacts.records import Runs
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Manifest
from nanochat_core.config.base import Config
from nanochat_core.errors import ArtifactNotFoundError, ConfigError
from nanochat_core.report.numbers import is_number, pick_key_numbers
from nanochat_core.report.scores import Score, change, read_scores
from tasks.listening import StageRecord

_LAST = re.compile(r"^last(?:~(\d+))?$")
_PARTS = ("/stderr", "/right", "/asked", "/baseline")
_SHOWN_RUNS = 8

Records = Mapping[str, StageRecord]


class RunSummary(Config):
    """One of the two runs."""

    run: str
    preset: str
    state: str
    seconds: float


class NumberPair(Config):
    """One number of one station in both runs."""

    name: str
    old: float | int | str | None
    new: float | int | str | None
    change: float | None = None
    stderr: float | None = Field(None, description="of the change, where both are known")
    is_noise: bool = False


class StationPair(Config):
    """One station in both runs; '' is a station that a run did not come to."""

    station: str
    states: tuple[str, str]
    seconds: tuple[float | None, float | None]
    artifacts: tuple[str, str]
    is_same_result: bool
    own: tuple[Cause, ...] = Field((), description="recipe fields and code version that differ")
    numbers: tuple[NumberPair, ...] = ()


class Divergence(Config):
    """The first station at which the runs are not the same, and why."""

    station: str
    causes: tuple[Cause, ...]


class RunComparison(Config):
    """Everything that sets two runs apart."""

    old: RunSummary
    new: RunSummary
    divergence: Divergence | None
    stations: tuple[StationPair, ...]
    parameters: tuple[FieldChange, ...]
    places: tuple[FieldChange, ...] = Field(description="hardware and packages")


def compare_runs(store: ArtifactStore, old_name: str, new_name: str) -> RunComparison:
    """Compare two runs of one store by their ids, first characters, `last` or `last~1`."""
    old, new = (run_record(store, name) for name in (old_name, new_name))
    tracer = Tracer(store)
    records = _stage_records(old), _stage_records(new)
    pairs = [
        _station_pair(tracer, name, *(each.get(name) for each in records))
        for name in STATIONS
        if any(name in each for each in records)
    ]
    return RunComparison(
        old=_summary(old),
        new=_summary(new),
        divergence=_divergence(tracer, *records),
        stations=tuple(pairs),
        parameters=tuple(changes(old.get("parameters", {}), new.get("parameters", {}))),
        places=tuple(place_changes(old, new)),
    )


def run_record(store: ArtifactStore, name: str) -> dict[str, Any]:
    """The record of a run by any of its names; ids begin with the time, so they sort by it."""
    runs = Runs(store.files)
    record = runs.read(_run_id(name, runs.names(), store.url))
    assert record is not None, "a run record was removed a moment ago"
    return record


def _run_id(name: str, ids: tuple[str, ...], url: str) -> str:
    if not ids:
        raise ArtifactNotFoundError(f"{url} holds no run yet; make one with: nanochat run demo")
    if match := _LAST.match(name):
        back = int(match[1] or 0)
        if back >= len(ids):
            raise ArtifactNotFoundError(f"{name}: {url} holds only {len(ids)} runs")
        return ids[-1 - back]
    found = [name] if name in ids else [each for each in ids if each.startswith(name)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(reversed((found or ids)[-_SHOWN_RUNS:]))
    if found:
        raise ConfigError(f"{name!r} stands for {len(found)} runs: {shown}; give more characters")
    raise ArtifactNotFoundError(
        f"no run {name!r} in {url}; the newest are {shown}. Give an id, its first characters, "
        "last, or last~1 for the one before"
    )


def _stage_records(record: Mapping[str, Any]) -> dict[str, StageRecord]:
    stations: Mapping[str, Any] = record.get("stations", {})
    return {name: StageRecord.model_validate(value) for name, value in stations.items()}


def _summary(record: Mapping[str, Any]) -> RunSummary:
    return RunSummary(
        run=str(record["run"]),
        preset=str(record.get("preset", "")),
        state=str(record.get("state", "")),
        seconds=float(record.get("seconds", 0.0)),
    )


def _refs(*records: StageRecord | None) -> list[ArtifactRef | None]:
    return [None if record is None else record.ref for record in records]


def _station_pair(
    tracer: Tracer, station: str, old: StageRecord | None, new: StageRecord | None
) -> StationPair:
    before, after = _refs(old, new)
    sides = [tracer.manifest(ref) for ref in (before, after) if ref and station in MAKING_STATIONS]
    known = [Side.of(manifest) for manifest in sides if manifest is not None]
    return StationPair(
        station=station,
        states=(old.state if old else "", new.state if new else ""),
        seconds=(old.seconds if old else None, new.seconds if new else None),
        artifacts=(before.short if before else "", after.short if after else ""),
        is_same_result=before is not None and after is not None and before.digest == after.digest,
        own=tuple(own_causes(*known)) if len(known) == 2 else (),
        numbers=number_pairs(station, old.metrics if old else {}, new.metrics if new else {}),
    )


def number_pairs(
    station: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[NumberPair, ...]:
    """The key numbers of a station; scores with the standard error of their change."""
    picked = {**pick_key_numbers(station, old), **pick_key_numbers(station, new)}
    scores = [read_scores(metrics) for metrics in (old, new)]
    names = dict.fromkeys(_root(name, scores[0] | scores[1]) for name in picked)
    return tuple(
        _number_pair(name, old.get(name), new.get(name), scores[0].get(name), scores[1].get(name))
        for name in names
    )


def _root(name: str, scores: Mapping[str, Score]) -> str:
    """The score of which a number is a part, as `sums` of `sums/stderr`; else the number itself."""
    base, slash, part = name.rpartition("/")
    return base if base in scores and slash + part in _PARTS else name


def _number_pair(
    name: str, old: Any, new: Any, before: Score | None, after: Score | None
) -> NumberPair:
    if before is not None and after is not None:
        gained = change(before, after)
        return NumberPair(
            name=name,
            old=old,
            new=new,
            change=gained.value,
            stderr=gained.stderr,
            is_noise=gained.is_noise,
        )
    gain = new - old if is_number(old) and is_number(new) else None
    return NumberPair(name=name, old=old, new=new, change=gain)


def _divergence(tracer: Tracer, old: Records, new: Records) -> Divergence | None:
    for station in MAKING_STATIONS:
        before, after = _refs(old.get(station), new.get(station))
        if before is None and after is None:
            continue
        if causes := _causes(tracer, station, before, after):
            return Divergence(station=station, causes=tuple(causes))
    return None


def _causes(
    tracer: Tracer, station: str, before: ArtifactRef | None, after: ArtifactRef | None
) -> list[Cause]:
    if before is None or after is None:
        which = "first" if before is None else "second"
        text = f"the {which} run has no artifact of {station}"
        return [Cause(station=station, kind="gone", text=text)]
    if before.fingerprint == after.fingerprint and before.digest == after.digest:
        return []
    manifests: list[Manifest | None] = [tracer.manifest(ref) for ref in (before, after)]
    sides = [Side.of(manifest) for manifest in manifests if manifest is not None]
    if len(sides) < 2:
        text = f"{before.short} -> {after.short}, not both of which are in the store any more"
        return [Cause(station=station, kind="gone", text=text)]
    return tracer.first_causes(*sides)
