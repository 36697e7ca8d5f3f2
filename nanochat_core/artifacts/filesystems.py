"""The few operations in which filesystems differ, behind one small interface.

Paths are relative to the root of the store and joined by '/'. `Files` is any fsspec filesystem;
`MemoryFiles`, `LocalFiles` and `S3Files` replace what those do otherwise.
"""

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import fsspec

from nanochat_core.artifacts.translate import writing

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20

# fsspec keeps one memory filesystem per process, so its lock is one per process too.
_memory_lock = threading.RLock()


@dataclass(frozen=True)
class FileInfo:
    """Size of a stored file, and what changes whenever its content does (the ETag), if known.

    `modified` is in seconds since 1970, and 0 where it was not asked for: only listings tell it.
    """

    size: int
    version: str | None
    modified: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Capabilities:
    """What a store was seen to do when it was asked to."""

    conditional_create: bool
    conditional_replace: bool
    create_ms: float = 0.0
    replace_ms: float = 0.0

    def __str__(self) -> str:
        create = "works" if self.conditional_create else "IS IGNORED"
        replace = "works" if self.conditional_replace else "IS IGNORED"
        return (
            f"create-if-absent {create} ({self.create_ms:.0f} ms), "
            f"replace-if-unchanged {replace} ({self.replace_ms:.0f} ms)"
        )


class Files:
    """A tree of files on any fsspec filesystem; one instance may be shared by threads and forks."""

    num_threads = 1
    """How many files to transfer at once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._by_process: dict[int, tuple[Any, str]] = {}
        self._capabilities: Capabilities | None = None

    def _open(self) -> tuple[Any, str]:
        """The filesystem and root path; made anew in each process, as many are not fork-safe."""
        pid = os.getpid()
        if pid not in self._by_process:
            self._by_process[pid] = self._make()
        return self._by_process[pid]

    def _make(self) -> tuple[Any, str]:
        # Without this flag a filesystem never sees what other processes wrote.
        filesystem, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        return filesystem, root

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
        return True

    def replace_if(self, path: str, data: bytes, version: str) -> str | None:
        """Replace `path` if it still is `version`; the new version, None when somebody was first.

        Here a comparison and then a write: `capabilities` says so, and nobody relies on it.
        """
        try:
            if self.info(path).version != version:
                return None
        except FileNotFoundError:
            return None
        self.write(path, data)
        return self.info(path).version

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

    def sha256(self, path: str, info: FileInfo | None = None) -> str:
        """sha256 of the bytes that are stored now; of that version where the store can tell."""
        del info
        filesystem, full = self._at(path)
        with filesystem.open(full, "rb") as file:
            return _hash_stream(file)

    def size(self, path: str) -> int:
        """Bytes; FileNotFoundError when absent."""
        return self.info(path).size

    def info(self, path: str) -> FileInfo:
        """Size and version of a file; FileNotFoundError when absent."""
        filesystem, full = self._at(path)
        return _info_of(filesystem.info(full), path)

    def infos(self, folder: str) -> dict[str, FileInfo]:
        """Every file below `folder`, by its path relative to it; none when it does not exist."""
        filesystem, full = self._at(folder)
        start = len(filesystem._strip_protocol(full).rstrip("/")) + 1
        found = filesystem.find(full, detail=True)
        return {path[start:]: _info_of(facts, path) for path, facts in found.items()}

    def fetch(self, path: str, target: Path, info: FileInfo | None = None) -> str:
        """Copy `path` to the local file `target`; returns the sha256 of what arrived."""
        del info
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

    def sweep_uploads(self, older_than_seconds: float = 24 * 3600) -> int:
        """Give up uploads that nobody has finished for so long; how many there were."""
        del older_than_seconds
        return 0

    def prepare(self, min_free_bytes: int) -> None:
        """Raise StoreUnavailableError unless the store takes files; say what it can do."""
        del min_free_bytes
        with writing(f"the store {self.url}"):
            found = self.capabilities()
        log.info("the store %s: %s", self.url, found)
        if not found.conditional_create:
            log.warning(
                "the store %s ignores conditional writes: run one thing at a time in it", self.url
            )

    def capabilities(self) -> Capabilities:
        """What the store can do, tried out once."""
        if self._capabilities is None:
            probe = f"cache/probe-{uuid4().hex}"
            self._capabilities = self._try_out(probe)
            self.remove(probe)
        return self._capabilities

    def _try_out(self, probe: str) -> Capabilities:
        started = time.perf_counter()
        self.create(probe, b"first")
        created = time.perf_counter()
        keeps_the_first = not self.create(probe, b"second")
        version = self.info(probe).version
        before = time.perf_counter()
        replaced = version is not None and self.replace_if(probe, b"third", version) is not None
        after = time.perf_counter()
        return Capabilities(
            conditional_create=keeps_the_first,
            conditional_replace=replaced and self._keeps_others(probe, version),
            create_ms=1e3 * (created - started),
            replace_ms=1e3 * (after - before),
        )

    def _keeps_others(self, probe: str, old_version: str | None) -> bool:
        """Whether a replacement is refused by a store in which the file has changed since."""
        del probe, old_version
        return False


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

    def replace_if(self, path: str, data: bytes, version: str) -> str | None:
        """As in `Files`, and nobody comes between."""
        with _memory_lock:
            return super().replace_if(path, data, version)

    def sha256(self, path: str, info: FileInfo | None = None) -> str:
        """As in `Files`; an open memory file would share its position with other readers."""
        del info
        return hashlib.sha256(self.read(path)).hexdigest()

    def info(self, path: str) -> FileInfo:
        """As in `Files`; the version is the content's own sha256."""
        data = self.read(path)
        return FileInfo(len(data), hashlib.sha256(data).hexdigest())

    def infos(self, folder: str) -> dict[str, FileInfo]:
        """As in `Files`."""
        with _memory_lock:
            return {
                path: replace(self.info(f"{folder}/{path}".lstrip("/")), modified=info.modified)
                for path, info in super().infos(folder).items()
            }

    def fetch(self, path: str, target: Path, info: FileInfo | None = None) -> str:
        """As in `Files`."""
        del info
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

    def _keeps_others(self, probe: str, old_version: str | None) -> bool:
        return self.replace_if(probe, b"fourth", str(old_version)) is None


def _info_of(facts: dict[str, Any], path: str) -> FileInfo:
    if facts["type"] == "directory":
        raise FileNotFoundError(errno.ENOENT, "it is a folder", path)
    changed = facts.get("LastModified") or facts.get("created") or facts.get("mtime")
    modified = changed.timestamp() if isinstance(changed, datetime) else float(changed or 0.0)
    return FileInfo(int(facts["size"]), facts.get("ETag"), modified)


def hash_file(path: Path) -> str:
    """sha256 of a local file."""
    with path.open("rb") as file:
        return _hash_stream(file)


def _hash_stream(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
