"""Files that are either absent or whole, also after a kill or a power cut."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CHUNK_BYTES = 4 * 2**20
"""So much is hashed and written at a time: what was hashed is still in the cache when written."""


def write_durably(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a new file from its pieces in order; returns its name, size and sha256.

    The file appears under its name once all of it is on disk.
    """
    digest, size = hashlib.sha256(), 0
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            for chunk in _chunks(pieces):
                digest.update(chunk)
                size += file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        # A full disk needs the room, and a name without a file is all that is left otherwise.
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return {"path": path.name, "bytes": size, "sha256": digest.hexdigest()}


def make_folder_durably(folder: Path) -> None:
    """Make a folder and those above it, so that all their names survive a power cut."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chunks(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]
