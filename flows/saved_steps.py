"""How far an unfinished station came: the last whole checkpoint in its in-progress folder."""

import re

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.generations import FOLDER
from nanochat_core.artifacts.local_files import LocalFiles
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.translate import reading
from nanochat_core.artifacts.types import Request
from nanochat_core.artifacts.unfinished import local_folder
from tasks.stored_work import CHECKPOINTS, MANIFEST, STEP_FOLDER, WORK

_GENERATION = re.compile(r"^(\d{6,})-\d{3,}$")


def saved_step(store: ArtifactStore, request: Request) -> int | None:
    """The step from which `request` would go on; 0 for work without one, None for no work.

    Of a store elsewhere what this host has counts, too.
    """
    taken = Manifests(store.files).numbers(request.station, request.fingerprint)
    places = [store.files]
    if store.is_elsewhere:
        places.append(LocalFiles(str(local_folder(store))))
    with reading("the in-progress folders"):
        steps = [step for files in places for step in _steps(files, request, max(taken, default=0))]
    return max(steps, default=None)


def _steps(files: Files, request: Request, last_manifest: int) -> list[int]:
    folder = f"{FOLDER}/{request.station}/{request.fingerprint}"
    names = [match for match in map(_GENERATION.match, files.names(folder)) if match]
    # What led to an earlier manifest is never used again.
    useful = [match[0] for match in names if int(match[1]) > last_manifest]
    return [_newest_step(files, f"{folder}/{name}/{WORK}/{CHECKPOINTS}") for name in useful]


def _newest_step(files: Files, folder: str) -> int:
    found = {int(m[1]): m[0] for m in map(STEP_FOLDER.match, files.names(folder)) if m}
    for step in sorted(found, reverse=True):
        if MANIFEST in files.names(f"{folder}/{found[step]}"):
            return step
    return 0
