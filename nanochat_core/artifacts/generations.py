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

_NUMBER = re.compile(r"^\d{6,}$")
_DISCARDED = ".discarded-"


def newest_generation(inprogress: Path, request: Request, *, fresh: bool) -> Path:
    """The newest in-progress folder of `request`, made if there is none or `fresh` asks for it."""
    folder = inprogress / request.station / request.fingerprint
    try:
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(name) for name in os.listdir(folder) if _NUMBER.match(name)]
        number = max(numbers, default=0) + (1 if fresh or not numbers else 0)
        path = folder / f"{number:06d}"
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(
            f"The in-progress folder {folder} cannot be made: {error.strerror or error}. "
            "Free some space or make the store writable, then run again."
        ) from error
    return path


def discard_generations(inprogress: Path, request: Request) -> None:
    """Remove every in-progress folder of `request`; a kill half-way leaves none of them usable."""
    folder = inprogress / request.station / request.fingerprint
    doomed = inprogress / f"{_DISCARDED}{uuid4().hex}"
    try:
        os.replace(folder, doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("the in-progress folder %s could not be set aside: %s", folder, error)
        doomed = folder
    shutil.rmtree(doomed, ignore_errors=True)


def sweep_discarded(inprogress: Path) -> None:
    """Remove what a discarding that was killed left behind."""
    for left in inprogress.glob(f"{_DISCARDED}*"):
        shutil.rmtree(left, ignore_errors=True)
