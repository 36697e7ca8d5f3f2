"""Local copies of artifacts from a store elsewhere, verified and limited in size."""

import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from nanochat_core.artifacts.filesystems import FileInfo, Files
from nanochat_core.artifacts.local_files import briefly_locked
from nanochat_core.artifacts.stamps import NOT_READ, Stamps
from nanochat_core.artifacts.threads import in_threads
from nanochat_core.artifacts.translate import reading
from nanochat_core.artifacts.types import FileRecord, Manifest
from nanochat_core.errors import DamagedFileError

log = logging.getLogger(__name__)

KEEP_SECONDS = 24 * 3600
"""A copy used within this time may be open in a running job, so it stays whatever its size."""

_INCOMING, _OUTGOING, _LOCK = ".incoming", ".outgoing", ".lock"


class LocalCopies:
    """Folders `<folder>/<station>/<fingerprint>/<attempt>`, the least recently used removed.

    Several processes may share them: a file appears whole, and a copy is marked as used, or moved
    away as unused, under a lock.
    """

    def __init__(self, folder: Path, stamps: Stamps, limit_bytes: int) -> None:
        self.folder, self.stamps, self.limit_bytes = folder, stamps, limit_bytes

    def fetch(self, files: Files, manifest: Manifest) -> Path:
        """A folder with every file of the artifact; DamagedFileError when the store's are not."""
        below = f"{manifest.station}/{manifest.fingerprint}/{manifest.attempt}"
        target = self.folder / below
        self._mark_as_used(target)
        missing = [file for file in manifest.files if not self._has(target / file.path, file)]
        if missing:
            with reading(f"the files in {below}"):
                infos = files.infos(below)

            def download(file: FileRecord) -> None:
                self._download(files, below, file, infos.get(file.path))

            in_threads(download, missing, files.num_threads)
            self._mark_as_used(target)
            self._shrink(keep=target)
        return target

    def _has(self, path: Path, file: FileRecord) -> bool:
        try:
            return self.stamps.confirms(path, file.sha256)
        except OSError:
            return False

    def _mark_as_used(self, target: Path) -> None:
        with briefly_locked(self.folder / _LOCK):
            target.mkdir(parents=True, exist_ok=True)
            os.utime(target)

    def _download(self, files: Files, below: str, file: FileRecord, info: FileInfo | None) -> None:
        """Bring one file, once more if it does not arrive whole."""
        source = f"{below}/{file.path}"
        if info is None or info.size != file.bytes:
            found = "it is not there" if info is None else f"it has {info.size:,} bytes"
            raise DamagedFileError(
                f"the file {source} is damaged: {found}, its manifest says {file.bytes:,} bytes. "
                "Run again with the same parameters to make it anew."
            )
        # What was changed on the way must not cost a day of training, so one look is not enough.
        for attempt in ("first", "second"):
            try:
                actual = self._bring(files, source, file, info)
            except DamagedFileError:
                # An outage or a stop says nothing of the file, and must not make it a miss.
                self.stamps.remember(f"{files.url}/{source}", info, NOT_READ)
                raise
            self.stamps.remember(f"{files.url}/{source}", info, actual)
            if actual == file.sha256:
                return
            log.warning("the %s reading of %s does not match its manifest", attempt, source)
        raise DamagedFileError(
            f"the file {source} is damaged: its sha256 is {actual[:12]}…, its manifest says "
            f"{file.sha256[:12]}…. Run again with the same parameters to make it anew."
        )

    def _bring(self, files: Files, source: str, file: FileRecord, info: FileInfo) -> str:
        """The sha256 of what arrived, which is put in its place only when it is the right one."""
        target = self.folder / source
        temporary = self.folder / _INCOMING / uuid4().hex
        temporary.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with reading(f"the file {source}"):
                actual = files.fetch(source, temporary, info)
            if actual == file.sha256:
                os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return actual

    def _shrink(self, keep: Path) -> None:
        """Remove the copies longest unused until the rest is within the limit."""
        sizes = {path: _folder_bytes(path) for path in self._copies()}
        total = sum(sizes.values())
        for path in sorted(sizes, key=_last_use):
            if total <= self.limit_bytes:
                break
            if path != keep and self._move_away(path):
                log.info("removing the local copy %s, %.0f MB", path, sizes[path] / 1e6)
                total -= sizes[path]
        self._sweep()

    def _copies(self) -> list[Path]:
        found = self.folder.glob("[!.]*/*/*")
        return [path for path in found if path.is_dir()]

    def _move_away(self, path: Path) -> bool:
        """Whether `path` was unused and is now where nobody looks for it."""
        away = self.folder / _OUTGOING
        with briefly_locked(self.folder / _LOCK):
            while path.exists() and time.time() - _last_use(path) >= KEEP_SECONDS:
                away.mkdir(exist_ok=True)
                # Another process that sweeps may remove the folder right now.
                with suppress(FileNotFoundError):
                    os.replace(path, away / uuid4().hex)
                    return True
        return False

    def _sweep(self) -> None:
        """Remove what was moved away, by whomever, and what killed processes left half-fetched."""
        shutil.rmtree(self.folder / _OUTGOING, ignore_errors=True)
        for path in (self.folder / _INCOMING).glob("*"):
            if time.time() - _last_use(path) > KEEP_SECONDS:
                path.unlink(missing_ok=True)


def _last_use(path: Path) -> float:
    """When it was marked as used; now, when it has just gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _folder_bytes(folder: Path) -> int:
    """Bytes of all files; those that vanish meanwhile count as none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total
