"""What killed runs leave beside a published artifact: nothing names it, so nobody would miss it."""

import re

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.types import Request
from nanochat_core.errors import DamagedFileError

_ATTEMPT = re.compile(r"^\d{8}T\d{6}-[0-9a-f]{12}$")
_TEMPORARY = ".tmp-"


def unnamed_paths(files: Files, manifests: Manifests, request: Request) -> list[str]:
    """Attempt folders that no manifest names, and temporary files, of one artifact.

    None while a manifest is damaged: it may have named any of them. Hold the lock of the artifact
    before removing them, as somebody may be about to name one.
    """
    folder = f"{request.station}/{request.fingerprint}"
    named = set()
    try:
        for number in manifests.numbers(request.station, request.fingerprint):
            named.add(manifests.read(request.station, request.fingerprint, number).attempt)
    except DamagedFileError:
        return []
    return [
        f"{folder}/{name}"
        for name in files.names(folder)
        if name.startswith(_TEMPORARY) or (_ATTEMPT.match(name) and name not in named)
    ]
