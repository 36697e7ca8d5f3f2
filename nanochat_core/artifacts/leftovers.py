"""What killed runs leave beside a published artifact: nothing names it, so nobody would miss it."""

import re
from collections.abc import Iterable

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.types import Manifest, Request
from nanochat_core.errors import DamagedFileError

_ATTEMPT = re.compile(r"^\d{8}T\d{6}-[0-9a-f]{12}$")
_COPY = re.compile(r"^\d{8}T\d{6}-[0-9a-f]{12}-copy-[0-9a-f]{8}$")
_TEMPORARY = ".tmp-"


def unnamed_paths(files: Files, manifests: Manifests, request: Request) -> list[str]:
    """Attempt folders that no manifest names, and temporary files, of one artifact.

    None while a manifest is damaged: it may have named any of them. Hold the lock of the artifact
    before removing them, as somebody may be about to name one. Copies from another store have a
    lock of their own, so they are not among them.
    """
    folder = f"{request.station}/{request.fingerprint}"
    numbers = manifests.numbers(request.station, request.fingerprint)
    try:
        named = attempts_in(
            manifests.read(request.station, request.fingerprint, number) for number in numbers
        )
    except DamagedFileError:
        return []
    return [
        f"{folder}/{name}"
        for name in files.names(folder)
        if is_temporary(name) or (_ATTEMPT.match(name) and name not in named)
    ]


def attempts_in(manifests: Iterable[Manifest]) -> set[str]:
    """The attempt folders that some manifests name."""
    return {manifest.attempt for manifest in manifests}


def is_attempt(name: str) -> bool:
    """Whether a folder of this name was made to hold the files of an artifact, made or copied."""
    return bool(_ATTEMPT.match(name) or _COPY.match(name))


def is_temporary(name: str) -> bool:
    """Whether a file of this name is half of one that was being written."""
    return name.startswith(_TEMPORARY)
