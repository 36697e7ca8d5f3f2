"""Remembers which files were hashed, so that verifying them again costs one `stat` each.

Of files on this machine a stamp can only confirm. Of files elsewhere it also denies: what a fetch
found damaged is not trusted at the next look, which would not read it.
"""

import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from nanochat_core.artifacts.canonical import canonical_json, sha256_hex
from nanochat_core.artifacts.filesystems import FileInfo, hash_file
from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.errors import DamagedFileError

log = logging.getLogger(__name__)

RACY_NANOSECONDS = 100_000_000
"""A file changed this shortly before it was hashed may change again without a newer ctime:
Linux takes file times from a clock that ticks every 1 to 10 ms, network disks from coarser ones."""


NOT_READ = "not read"
"""In place of a sha256: the file could not be read whole."""


@dataclass(frozen=True)
class _State:
    """What tells one state of a file from another."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> "_State":
        found = path.stat()
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Stamps:
    """One sealed file per hashed file: (host, path, inode, size, mtime, ctime) -> sha256.

    For a file elsewhere: (host, address, version, size) -> sha256. A stamp that is missing or
    damaged costs one more reading of the file; a folder that cannot be written, one each time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def confirms(self, path: Path, sha256: str) -> bool:
        """Whether the file holds the bytes of `sha256`, by its stamp or else by hashing it."""
        state = _State.of(path)
        stamp = self._stamp_path(path)
        if self._read(stamp) == self._body(path, state, sha256):
            return True
        started_ns = time.time_ns()
        actual = hash_file(path)
        settled = _State.of(path) == state and started_ns - state.ctime_ns > RACY_NANOSECONDS
        if actual == sha256 and settled:
            self._write(stamp, self._body(path, state, sha256))
        return actual == sha256

    def known_sha256(self, address: str, info: FileInfo) -> str | None:
        """What this host found in this version of the file at `address`, if it has read it."""
        body = self._read(self._stamp_of(address)) if info.version else None
        if body is None or body != _body_elsewhere(address, info, body.get("sha256_of_file")):
            return None
        return str(body["sha256_of_file"])

    def remember(self, address: str, info: FileInfo, sha256: str) -> None:
        """Keep what this version of the file at `address` holds, sound or not."""
        if info.version:
            self._write(self._stamp_of(address), _body_elsewhere(address, info, sha256))

    def _stamp_path(self, path: Path) -> Path:
        return self._stamp_of(os.path.abspath(path))

    def _stamp_of(self, address: str) -> Path:
        name = sha256_hex(canonical_json([socket.gethostname(), address]))
        return self.folder / f"{name}.json"

    def _body(self, path: Path, state: _State, sha256: str) -> dict[str, object]:
        return {"path": os.path.abspath(path), "sha256_of_file": sha256, **vars(state)}

    def _read(self, stamp: Path) -> dict[str, object] | None:
        try:
            return unseal(stamp.read_bytes(), f"the stamp {stamp}")
        except FileNotFoundError:
            return None
        except (OSError, DamagedFileError) as error:
            log.warning("ignoring a stamp, the file is hashed again: %s", error)
            return None

    def _write(self, stamp: Path, body: dict[str, object]) -> None:
        temporary = stamp.parent / f".tmp-{uuid4().hex}"
        try:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(seal(body))
            os.replace(temporary, stamp)
        except OSError as error:
            log.debug("no stamp could be kept in %s: %s", self.folder, error)


def _body_elsewhere(address: str, info: FileInfo, sha256: object) -> dict[str, object]:
    return {"address": address, "sha256_of_file": sha256, **vars(info)}
