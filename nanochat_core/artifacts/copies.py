"""Local copies of artifacts from a store elsewhere, verified and limited in size."""

import logging
import os
import shutil
import time
from pathlib import Path
from uuid import uuid4

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.stamps import Stamps
from nanochat_core.artifacts.translate import reading
from nanochat_core.artifacts.types import FileRecord, Manifest
from nanochat_core.errors import DamagedFileError

log = logging.getLogger(__name__)

KEEP_SECONDS = 24 * 3600
"""A copy used within this time may be open in a running job, so it stays whatever its size."""


class LocalCopies:
    """Folders `<folder>/<station>/<fingerprint>/<attempt>`, the least recently used removed."""

    def __init__(self, folder: Path, stamps: Stamps, limit_bytes: int) -> None:
        self.folder, self.stamps, self.limit_bytes = folder, stamps, limit_bytes

    def fetch(self, files: Files, manifest: Manifest) -> Path:
        """A folder with every file of the artifact; DamagedFileError when the store's are not."""
        below = f"{manifest.station}/{manifest.fingerprint}/{manifest.attempt}"
        target = self.folder / below
        target.mkdir(parents=True, exist_ok=True)
        for file in manifest.files:
            if not self._has(target / file.path, file):
                _download(files, f"{below}/{file.path}", target / file.path, file)
        os.utime(target)
        self._shrink(keep=target)
        return target

    def _has(self, path: Path, file: FileRecord) -> bool:
        try:
            return self.stamps.confirms(path, file.sha256)
        except OSError:
            return False

    def _shrink(self, keep: Path) -> None:
        copies = sorted(
            (path for path in self.folder.glob("*/*/*") if path != keep),
            key=lambda path: path.stat().st_mtime,
        )
        sizes = {path: _folder_bytes(path) for path in (*copies, keep)}
        total = sum(sizes.values())
        for path in copies:
            is_recent = time.time() - path.stat().st_mtime < KEEP_SECONDS
            if total <= self.limit_bytes or is_recent:
                return
            log.info("removing the local copy %s, %.0f MB", path, sizes[path] / 1e6)
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]


def _download(files: Files, source: str, target: Path, file: FileRecord) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{uuid4().hex}"
    try:
        with reading(f"the file {source}"):
            actual = files.fetch(source, temporary)
        if actual != file.sha256:
            raise DamagedFileError(
                f"the file {source} is damaged: its sha256 is {actual[:12]}…, its manifest says "
                f"{file.sha256[:12]}…. Run again with the same parameters to make it anew."
            )
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
