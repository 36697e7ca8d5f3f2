"""In-progress folders: where a station works until it publishes, kept when it is killed."""

import logging
import os
import re
import shutil
from pathlib import Path
from uuid import uuid4

from nanochat_core.artifacts.types import Request
from nanochat_core.errors import StoreUnavailableError

log = logging.getLogger(__name__)

_NAME = re.compile(r"^(\d{6,})-(\d{3,})$")
_DISCARDED = ".discarded-"


def newest_generation(
    inprogress: Path, request: Request, *, next_manifest: int, fresh: bool
) -> Path:
    """The in-progress folder for manifest `next_manifest` of `request`, made if there is none.

    `fresh` starts another. Folders that led to an earlier manifest are never used again: their
    files may be hard links to published ones.
    """
    folder = inprogress / request.station / request.fingerprint
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [match for match in map(_NAME.match, os.listdir(folder)) if match]
        counters = [int(match[2]) for match in found if int(match[1]) == next_manifest]
        counter = max(counters, default=0) + (1 if fresh or not counters else 0)
        path = folder / f"{next_manifest:06d}-{counter:03d}"
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(
            f"The in-progress folder {folder} cannot be made: {error.strerror or error}. "
            "Free some space or make the store writable, then run again."
        ) from error
    for match in found:
        if match[0] != path.name:
            _remove(inprogress, folder / match[0])
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
