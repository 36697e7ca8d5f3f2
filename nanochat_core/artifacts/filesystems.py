"""The few operations in which filesystems differ, behind one small interface.

Paths are relative to the root of the store and joined by '/'. `Files` is any fsspec filesystem with
conditional writes (S3); `MemoryFiles` and `LocalFiles` replace what those two do otherwise.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import fsspec

from nanochat_core.artifacts.translate import writing

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
_LOST_RACE_CODES = ("PreconditionFailed", "ConditionalRequestConflict")

# fsspec keeps one memory filesystem per process, so its lock is one per process too.
_memory_lock = threading.RLock()


class Files:
    """A tree of files on any fsspec filesystem; one instance may be shared by threads and forks."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._by_process: dict[int, tuple[Any, str]] = {}

    def _open(self) -> tuple[Any, str]:
        """The filesystem and root path; made anew in each process, as s3fs is not fork-safe."""
        pid = os.getpid()
        if pid not in self._by_process:
            # Without this flag s3fs never sees what other processes wrote.
            self._by_process[pid] = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        return self._by_process[pid]

    def _at(self, path: str) -> tuple[Any, str]:
        filesystem, root = self._open()
        return filesystem, f"{root.rstrip('/')}/{path}"

    def local_path(self, path: str) -> Path | None:
        """Where `path` lies on this machine; None when it does not."""
        del path
        return None

    def read(self, path: str) -> bytes:
        """Whole content; FileNotFoundError when absent."""
        filesystem, full = self._at(path)
        data: bytes = filesystem.cat_file(full)
        return data

    def create(self, path: str, data: bytes) -> bool:
        """Write `path` if nothing is there yet; False when somebody was first. Never partial."""
        filesystem, full = self._at(path)
        try:
            filesystem.pipe_file(full, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # Some servers answer 412 without naming the condition; s3fs then says EINVAL.
            response = getattr(error.__cause__, "response", None) or {}
            if response.get("Error", {}).get("Code") in _LOST_RACE_CODES:
                return False
            raise
        return True

    def write(self, path: str, data: bytes) -> None:
        """Replace `path` as a whole: a reader sees the old or the new content."""
        filesystem, full = self._at(path)
        filesystem.pipe_file(full, data)

    def put(self, source: Path, path: str, *, share: bool) -> str:
        """Store the local file `source` as `path`; returns the sha256 of what was stored.

        `share` allows one file on disk with two names; only for what nobody writes any more.
        """
        if not share:
            # It may grow meanwhile: what is hashed must be what is sent.
            with tempfile.TemporaryDirectory() as folder:
                snapshot = Path(folder) / "snapshot"
                shutil.copyfile(source, snapshot)
                return self.put(snapshot, path, share=True)
        sha256 = hash_file(source)
        filesystem, full = self._at(path)
        filesystem.put_file(os.fspath(source), full)
        return sha256

    def sha256(self, path: str) -> str:
        """sha256 of the bytes that are stored now."""
        filesystem, full = self._at(path)
        with filesystem.open(full, "rb") as file:
            return _hash_stream(file)

    def size(self, path: str) -> int:
        """Bytes; FileNotFoundError when absent."""
        filesystem, full = self._at(path)
        return int(filesystem.size(full))

    def fetch(self, path: str, target: Path) -> str:
        """Copy `path` to the local file `target`; returns the sha256 of what arrived."""
        filesystem, full = self._at(path)
        filesystem.get_file(full, os.fspath(target))
        return hash_file(target)

    def names(self, folder: str) -> tuple[str, ...]:
        """Sorted names in a folder; none when it does not exist."""
        filesystem, full = self._at(folder)
        try:
            found = filesystem.ls(full.rstrip("/"), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found} - {""}))

    def settle(self, folder: str) -> None:
        """Make the files written in `folder` survive a power cut, where that needs doing."""

    def remove(self, path: str) -> None:
        """Remove a file or a whole folder, if it is there."""
        filesystem, full = self._at(path)
        if filesystem.exists(full):
            filesystem.rm(full, recursive=True)

    def prepare(self, min_free_bytes: int) -> None:
        """Raise StoreUnavailableError unless the store takes files and refuses to overwrite."""
        del min_free_bytes
        probe = f"cache/probe-{uuid4().hex}"
        with writing(f"the store {self.url}"):
            self.create(probe, b"first")
            if self.create(probe, b"second"):
                log.warning(
                    "the store %s ignores conditional writes: run one thing at a time in it",
                    self.url,
                )
            self.remove(probe)


class MemoryFiles(Files):
    """fsspec's memory filesystem, whose check-then-write and listings need a lock."""

    def create(self, path: str, data: bytes) -> bool:
        """As in `Files`."""
        with _memory_lock:
            return super().create(path, data)

    def write(self, path: str, data: bytes) -> None:
        """As in `Files`."""
        with _memory_lock:
            super().write(path, data)

    def put(self, source: Path, path: str, *, share: bool) -> str:
        """As in `Files`; what is hashed is what is stored."""
        del share
        data = source.read_bytes()
        self.write(path, data)
        return hashlib.sha256(data).hexdigest()

    def sha256(self, path: str) -> str:
        """As in `Files`; an open memory file would share its position with other readers."""
        return hashlib.sha256(self.read(path)).hexdigest()

    def fetch(self, path: str, target: Path) -> str:
        """As in `Files`."""
        data = self.read(path)
        target.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    def names(self, folder: str) -> tuple[str, ...]:
        """As in `Files`."""
        with _memory_lock:
            return super().names(folder)

    def remove(self, path: str) -> None:
        """As in `Files`."""
        with _memory_lock:
            super().remove(path)


def hash_file(path: Path) -> str:
    """sha256 of a local file."""
    with path.open("rb") as file:
        return _hash_stream(file)


def _hash_stream(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
