"""Work that was begun: in-progress folders here and in the store, and who is at work right now."""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanochat_core.artifacts.ancestry import Place
from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.generations import FOLDER
from nanochat_core.artifacts.leases import LeaseFile, Seen, place_of
from nanochat_core.artifacts.listing import Listed, listed
from nanochat_core.artifacts.local_files import LocalFiles
from nanochat_core.artifacts.records import is_fingerprint, is_station
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.translate import reading
from nanochat_core.errors import StationBusyError

log = logging.getLogger(__name__)

JOB_FILES = ("work/job.json", "job.json")
"""Where a job is told its inputs, below a generation."""
LOOKS_PER_LEASE = 30


@dataclass(frozen=True)
class Unfinished:
    """One generation of one artifact in the making; `path` is relative to the files it lies in."""

    place: Place
    path: str
    bytes: int
    modified: float
    inputs: tuple[tuple[str, str, str], ...]
    """Station, fingerprint and attempt of each input that its job was told."""
    folder: Path | None = None
    """Where it lies on this host, when that is not in the store itself."""


def unfinished_work(store: ArtifactStore) -> list[Unfinished]:
    """What interrupted stages go on from, in the store and on this host."""
    found = list(_below(store.files, None))
    if store.is_elsewhere:
        here = local_folder(store)
        found += _below(LocalFiles(str(here)), here)
    return found


def local_folder(store: ArtifactStore) -> Path:
    """Where this host keeps what it makes for a store, which is the store when that is a folder."""
    return store._here


def _below(files: Files, here: Path | None) -> Iterator[Unfinished]:
    generations: dict[tuple[str, str, str], list[Listed]] = {}
    for file in listed(files, FOLDER):
        station, fingerprint, name = [*file.path.split("/", 3), "", ""][:3]
        if is_station(station) and is_fingerprint(fingerprint) and name:
            generations.setdefault((station, fingerprint, name), []).append(file)
    for (station, fingerprint, name), content in generations.items():
        path = f"{FOLDER}/{station}/{fingerprint}/{name}"
        yield Unfinished(
            place=(station, fingerprint),
            path=path,
            bytes=sum(file.bytes for file in content),
            modified=max(file.modified for file in content),
            inputs=tuple(_inputs(files, path, content)),
            folder=None if here is None else here / path,
        )


def _inputs(files: Files, path: str, content: Iterable[Listed]) -> Iterator[tuple[str, str, str]]:
    """The inputs that a job was told as folders: `…/<station>/<fingerprint>/<attempt>`."""
    names = {file.path.split("/", 3)[-1] for file in content}
    for name in names.intersection(JOB_FILES):
        # Half a file is of a job that was killed before it began.
        with suppress(ValueError, KeyError, AttributeError):
            with reading(f"the file {path}/{name}"):
                told = json.loads(files.read(f"{path}/{name}"))
            for folder in told["inputs"].values():
                station, fingerprint, attempt = ("", "", *Path(folder).parts)[-3:]
                if is_station(station) and is_fingerprint(fingerprint):
                    yield station, fingerprint, attempt


def being_made(store: ArtifactStore) -> list[str]:
    """What some process is making right now, each in words that name the process.

    A lease in a store elsewhere that was not released is watched until it is renewed or has
    stayed the same for its time to live; the log says so.
    """
    found = [busy for place in _lock_files(store) if (busy := _holder_here(store, place))]
    return found + (_holders_elsewhere(store) if store.is_elsewhere else [])


def _lock_files(store: ArtifactStore) -> list[Place]:
    """Locks of this host that are not known to be free: a free one was emptied."""
    folder = local_folder(store) / "locks"
    held = [path for path in folder.glob("*.lock") if path.stat().st_size > 0]
    return [_split(path.name.removesuffix(".lock")) for path in held]


def _split(name: str) -> Place:
    station, _, fingerprint = name.rpartition("-")
    return station, fingerprint


def _holder_here(store: ArtifactStore, place: Place) -> str:
    try:
        with store._held(*place, wait=False, watch=False):
            return ""
    except StationBusyError as error:
        return str(error).split(". ")[0]


def _holders_elsewhere(store: ArtifactStore) -> list[str]:
    names = [name for name in store.files.names("locks") if name.endswith(".json")]
    # Who holds one on this host holds the lock of this host as well, and was found there.
    own = place_of(local_folder(store) / "locks")
    held = {
        name: seen
        for name, seen in _unreleased(store, names).items()
        if seen.body.get("place") != own
    }
    deadline = time.monotonic() + store.lease_seconds
    renewed: dict[str, Seen] = {}
    if held:
        log.warning(
            "looking for up to %.0f s whether %s still live", store.lease_seconds, _words(held)
        )
    while held.keys() - renewed.keys() and time.monotonic() < deadline:
        time.sleep(store.lease_seconds / LOOKS_PER_LEASE)
        for name, seen in _unreleased(store, list(held.keys() - renewed.keys())).items():
            if seen.version != held[name].version:
                renewed[name] = seen
    return [
        f"{_split(name.removesuffix('.json'))[0]} is being made right now by {seen.owner}"
        for name, seen in sorted(renewed.items())
    ]


def _unreleased(store: ArtifactStore, names: Iterable[str]) -> dict[str, Seen]:
    looks = {name: LeaseFile(store.files, f"locks/{name}").look() for name in names}
    return {
        name: seen
        for name, seen in looks.items()
        if seen is not None and seen.body.get("released") is not True
    }


def _words(held: dict[str, Seen]) -> str:
    return ", ".join(sorted({seen.owner for seen in held.values()}))
