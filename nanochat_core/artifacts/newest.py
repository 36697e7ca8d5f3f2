"""The newest artifacts and runs of a store that holds many: order by listings, then read a few."""

import heapq
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.listing import listed
from nanochat_core.artifacts.records import (
    Manifests,
    Runs,
    is_fingerprint,
    is_station,
    manifest_number,
)
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.threads import in_threads
from nanochat_core.artifacts.translate import reading
from nanochat_core.artifacts.types import Manifest
from nanochat_core.errors import DamagedFileError

log = logging.getLogger(__name__)

READERS = 16
"""Requests at once to a store elsewhere, where each takes tens of milliseconds."""


class _Place(NamedTuple):
    modified: float
    station: str
    fingerprint: str
    numbers: tuple[int, ...]


def newest_manifests(store: ArtifactStore, station: str = "", limit: int = 0) -> list[Manifest]:
    """The newest artifacts (0: all), the newest last, each by its newest valid manifest.

    Which are the newest is told by when their manifests were written, so that few are read: those
    that came here from another store count from their arrival. Damaged ones are logged.
    """
    root = store.files.local_path("")
    if root is None:
        places = _newest_elsewhere(store.files, station, limit)
    else:
        places = _newest_on_disk(root, station, limit)
    found = in_threads(partial(_read, Manifests(store.files)), places, 1 if root else READERS)
    manifests = [manifest for manifest in found if manifest is not None]
    return sorted(manifests, key=lambda m: (m.created, m.station))


def newest_runs(store: ArtifactStore, limit: int) -> dict[str, dict[str, Any]]:
    """The records of the newest `limit` runs by id, the newest last; damaged ones are logged.

    The id of a run begins with the time at which it was started.
    """
    runs, records = Runs(store.files), dict[str, dict[str, Any]]()
    for run_id in reversed(runs.names()):
        if len(records) == limit:
            break
        try:
            record = runs.read(run_id)
        except DamagedFileError as error:
            log.warning("%s", error)
            continue
        if record is not None:
            records[run_id] = record
    return dict(sorted(records.items()))


def _read(manifests: Manifests, place: _Place) -> Manifest | None:
    for number in sorted(place.numbers, reverse=True):
        try:
            return manifests.read(place.station, place.fingerprint, number)
        except DamagedFileError as error:
            log.warning("%s", error)
    return None


def _newest_on_disk(root: Path, station: str, limit: int) -> list[_Place]:
    """Looks into few folders: a folder changes when a manifest is added, never before it."""
    with reading(f"the store {root}"):
        stations = [station] if station else _folders(root)
        folders = [folder for name in stations if is_station(name) for folder in _dated(root, name)]
    newest: list[_Place] = []
    for modified, name, fingerprint in sorted(folders, reverse=True):
        if limit and len(newest) == limit and newest[0].modified >= modified:
            break
        place = _on_disk(root, name, fingerprint)
        if place is not None:
            heapq.heappush(newest, place)
        if limit and len(newest) > limit:
            heapq.heappop(newest)
    return newest


def _folders(root: Path) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.listdir(root)
    return []


def _dated(root: Path, station: str) -> Iterator[tuple[float, str, str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(root / station) as entries:
        for entry in entries:
            if is_fingerprint(entry.name):
                with suppress(FileNotFoundError):
                    yield entry.stat().st_mtime, station, entry.name


def _on_disk(root: Path, station: str, fingerprint: str) -> _Place | None:
    times: dict[int, float] = {}
    with (
        suppress(FileNotFoundError, NotADirectoryError),
        os.scandir(root / station / fingerprint) as entries,
    ):
        for entry in entries:
            number = manifest_number(entry.name)
            if number is not None:
                times[number] = entry.stat().st_mtime
    return _Place(max(times.values()), station, fingerprint, tuple(times)) if times else None


def _newest_elsewhere(files: Files, station: str, limit: int) -> list[_Place]:
    with reading("the store"):
        stations = [station] if station else list(files.names(""))
    places = [place for name in stations if is_station(name) for place in _listed(files, name)]
    return heapq.nlargest(limit, places) if limit else places


def _listed(files: Files, station: str) -> Iterable[_Place]:
    times: dict[str, dict[int, float]] = {}
    for file in listed(files, station):
        fingerprint, _, name = file.path.partition("/")
        number = manifest_number(name)
        if number is not None and is_fingerprint(fingerprint):
            times.setdefault(fingerprint, {})[number] = file.modified
    for fingerprint, found in times.items():
        yield _Place(max(found.values()), station, fingerprint, tuple(found))
