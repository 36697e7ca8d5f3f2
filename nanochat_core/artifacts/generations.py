"""In-progress folders: where a station works until it publishes, kept when it is killed.

The work itself is on this host. What a host has put into a store elsewhere, so that another one can
go on from it, lies under the same names there: `inprogress/<station>/<fingerprint>/<generation>/`.
"""

import logging
import os
import re
import shutil
from pathlib import Path
from uuid import uuid4

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.translate import reading, writing
from nanochat_core.artifacts.types import Request
from nanochat_core.errors import StoreUnavailableError

log = logging.getLogger(__name__)

FOLDER = "inprogress"
_NAME = re.compile(r"^(\d{6,})-(\d{3,})$")
_DISCARDED = ".discarded-"
_LAST = "manifest.json"
"""What makes a step checkpoint whole, in whatever folder below a generation."""


class StoredGenerations:
    """What is in the store of the work on one request, put there by whichever host."""

    def __init__(self, files: Files, request: Request) -> None:
        self.files = files
        self.folder = f"{FOLDER}/{request.station}/{request.fingerprint}"

    def names(self) -> tuple[str, ...]:
        """Generations of which there is a file."""
        with reading(f"the in-progress folder {self.folder}"):
            # An emptied folder may stay listed, so only files count.
            return tuple(sorted({path.split("/")[0] for path in self.files.infos(self.folder)}))

    def remove(self, name: str = "") -> None:
        """Remove one generation, or all of them."""
        place = f"{self.folder}/{name}".rstrip("/")
        with writing(f"the in-progress folder {place}"):
            remove_whole(self.files, place)


def remove_whole(files: Files, place: str) -> None:
    """Remove a folder; what makes checkpoints in it whole goes first.

    A kill half-way must not leave half a checkpoint that looks whole.
    """
    paths = files.infos(place)
    for path in paths:
        if path.split("/")[-1] == _LAST:
            files.remove(f"{place}/{path}")
    if paths:
        files.remove(place)


def newest_generation(
    inprogress: Path,
    request: Request,
    *,
    next_manifest: int,
    fresh: bool,
    stored: StoredGenerations | None = None,
) -> Path:
    """The in-progress folder for manifest `next_manifest` of `request`, made if there is none.

    `fresh` starts another. Folders that led to an earlier manifest are never used again: their
    files may be hard links to published ones. Those that other hosts have `stored` count, too.
    """
    folder = inprogress / request.station / request.fingerprint
    elsewhere = () if stored is None else stored.names()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        here = os.listdir(folder)
        found = [match for match in map(_NAME.match, {*here, *elsewhere}) if match]
        counters = [int(match[2]) for match in found if int(match[1]) == next_manifest]
        counter = max(counters, default=0) + (1 if fresh or not counters else 0)
        path = folder / f"{next_manifest:06d}-{counter:03d}"
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(
            f"The in-progress folder {folder} cannot be made: {error.strerror or error}. "
            "Free some space or make the store writable, then run again."
        ) from error
    for name in (match[0] for match in found if match[0] != path.name):
        if name in here:
            _remove(inprogress, folder / name)
        if stored is not None and name in elsewhere:
            stored.remove(name)
    return path


def discard_generations(inprogress: Path, request: Request) -> None:
    """Remove every in-progress folder of `request`."""
    _remove(inprogress, inprogress / request.station / request.fingerprint)


def sweep_discarded(inprogress: Path) -> None:
    """Remove what a discarding that was killed left behind."""
    for left in inprogress.glob(f"{_DISCARDED}*"):
        shutil.rmtree(left, ignore_errors=True)


def _remove(inprogress: Path, folder: Path) -> None:
    """Rename first: a kill half-way must not leave half a folder to resume from."""
    doomed = inprogress / f"{_DISCARDED}{uuid4().hex}"
    try:
        os.replace(folder, doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("the in-progress folder %s could not be set aside: %s", folder, error)
        doomed = folder
    shutil.rmtree(doomed, ignore_errors=True)
