"""Removes what `collecting` found: manifest first, so that none ever names files that are gone."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from uuid import uuid4

from nanochat_core.artifacts.collecting import LEFT_SECONDS, Collection, Removal, Roots
from nanochat_core.artifacts.generations import FOLDER, remove_whole, sweep_discarded
from nanochat_core.artifacts.records import Manifests, manifest_path
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.transfer import COPY_LOCK, COPY_MARK
from nanochat_core.artifacts.translate import writing
from nanochat_core.artifacts.unfinished import local_folder, unfinished_work
from nanochat_core.errors import StationBusyError

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 1.0
DISCARDED = ".discarded-"
"""As in `generations`, which removes what a kill leaves of these."""

Told = Callable[[Removal, str], None]
"""Told of everything that was looked at, with why it stays, or "" when it is gone."""


def sweep(store: ArtifactStore, collection: Collection, told: Told) -> int:
    """Remove it, one after the other; returns how many bytes were freed.

    What is being made right now stays, and so does what has changed since it was found. Killed at
    any point it leaves a sound store, and may be run again.
    """
    freed = 0
    sentinel = _Sentinel(store, collection.roots)
    for removal in collection.removals:
        reason = _removed(store, sentinel, removal)
        told(removal, reason)
        freed += 0 if reason else removal.bytes
    sweep_discarded(local_folder(store) / FOLDER)
    return freed


def sweep_uploads(store: ArtifactStore) -> int:
    """Abort uploads to an object store that were cut off more than a day ago; returns how many."""
    aborted: int = store.files.sweep_uploads(older_than_seconds=LEFT_SECONDS)
    return aborted


class _Sentinel:
    """Looks now and then whether an alias was set or a run has ended since the collection."""

    def __init__(self, store: ArtifactStore, roots: Roots) -> None:
        self.store, self.roots = store, roots
        self._looked = -LOOK_AGAIN_SECONDS
        self._is_same = True

    def is_same(self) -> bool:
        """Whether what names artifacts from outside is what it was."""
        if self._is_same and time.monotonic() - self._looked >= LOOK_AGAIN_SECONDS:
            self._is_same = Roots.of(self.store) == self.roots
            self._looked = time.monotonic()
        return self._is_same


def _removed(store: ArtifactStore, sentinel: _Sentinel, removal: Removal) -> str:
    """Why a removal did not happen; "" when it did."""
    station, fingerprint = removal.place
    try:
        with ExitStack() as locks:
            for name in _locks_of(removal):
                locks.enter_context(store._held(name, fingerprint, wait=False, watch=False))
            if removal.manifests and not sentinel.is_same():
                return "names or runs have changed since it was found; collect again"
            if removal.kind == "in progress" and _is_newer(store, removal):
                return "it was worked on since it was found"
            if removal.kind in ("in progress", "local copy"):
                _remove_work(store, removal)
                return ""
            found = Manifests(store.files).numbers(station, fingerprint)
            if set(found) - set(removal.numbers):
                return "it was published again since it was found"
            _remove(store, removal)
    except StationBusyError as error:
        return str(error).split(". ")[0]
    return ""


def _is_newer(store: ArtifactStore, removal: Removal) -> bool:
    works = [work for work in unfinished_work(store) if work.place == removal.place]
    return any(work.modified > removal.modified for work in works)


def _locks_of(removal: Removal) -> list[str]:
    """Whoever makes an artifact holds the one, whoever copies it from another store the other."""
    station = removal.place[0]
    is_copy = any(COPY_MARK in path for path in removal.paths)
    return [station, f"{station}{COPY_LOCK}"] if is_copy else [station]


def _remove_work(store: ArtifactStore, removal: Removal) -> None:
    """Half of it must never be taken for the whole, by whoever goes on from it."""
    folder = removal.folder or store.files.local_path(removal.paths[0])
    if folder is None:
        with writing(removal.name):
            remove_whole(store.files, removal.paths[0])
        return
    doomed = local_folder(store) / FOLDER / f"{DISCARDED}{uuid4().hex}"
    with writing(removal.name), suppress(FileNotFoundError):
        doomed.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()  # only if nothing is left in it


def _remove(store: ArtifactStore, removal: Removal) -> None:
    files, place = store.files, "/".join(removal.place)
    with writing(removal.name):
        for number in removal.manifests:
            files.remove(manifest_path(*removal.place, number))
        if removal.manifests:
            # Not even a power cut may bring the manifest back once files are gone.
            files.settle(place)
        for path in removal.paths:
            files.remove(path)
    folder = files.local_path(place)
    if folder is not None:
        with suppress(OSError):
            os.rmdir(folder)  # only if nothing is left in it
