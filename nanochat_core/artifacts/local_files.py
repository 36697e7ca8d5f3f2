"""A folder as a store: temporary files, fsync, and one atomic link or rename."""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from nanochat_core.artifacts.filesystems import (
    CHUNK_BYTES,
    Capabilities,
    FileInfo,
    Files,
    hash_file,
)
from nanochat_core.artifacts.locks import locked
from nanochat_core.errors import StationBusyError, StoreUnavailableError

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


BRIEF_SECONDS = 0.01


@contextmanager
def briefly_locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for a few file operations, after others who do the same."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(path, path.name, wait=False))
                break
            except StationBusyError:
                time.sleep(BRIEF_SECONDS)
        yield


class LocalFiles(Files):
    """A folder: a temporary file in the same folder, fsync, then one atomic link or rename."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.root = Path(self._open()[1])

    def local_path(self, path: str) -> Path:
        """As in `Files`; always there."""
        return self.root / path

    def read(self, path: str) -> bytes:
        """As in `Files`."""
        return (self.root / path).read_bytes()

    def create(self, path: str, data: bytes) -> bool:
        """As in `Files`."""
        target = self.root / path
        temporary = _write_beside(target, data)
        try:
            return _link_if_absent(temporary, target, data)
        finally:
            temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)

    def write(self, path: str, data: bytes) -> None:
        """As in `Files`."""
        target = self.root / path
        temporary = _write_beside(target, data)
        try:
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)

    def replace_if(self, path: str, data: bytes, version: str) -> str | None:
        """As in `Files`, and no other `replace_if` comes between, by an OS lock."""
        target = self.root / path
        with briefly_locked(self.root / "locks" / "replace.lock"):
            try:
                before = target.stat()
            except FileNotFoundError:
                return None
            if _version(before) != version:
                return None
            temporary = _write_beside(target, data)
            # File times tick slowly and inodes are used again: without this an old version could
            # return.
            newer_ns = max(time.time_ns(), before.st_mtime_ns + 1)
            os.utime(temporary, ns=(newer_ns, newer_ns))
            os.replace(temporary, target)
            _sync_folder(target.parent)
            return _version(target.stat())

    def put(self, source: Path, path: str, *, share: bool) -> str:
        """As in `Files`: a hard link where allowed and possible, else a copy; hashed after."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (share and _linked(source, target)):
            with source.open("rb") as reader, target.open("xb") as writer:
                shutil.copyfileobj(reader, writer, CHUNK_BYTES)
        _sync_file(target)
        return hash_file(target)

    def sha256(self, path: str, info: FileInfo | None = None) -> str:
        """As in `Files`."""
        del info
        return hash_file(self.root / path)

    def info(self, path: str) -> FileInfo:
        """As in `Files`; the version is made of size, inode and time of change."""
        found = (self.root / path).stat()
        return FileInfo(found.st_size, _version(found))

    def infos(self, folder: str) -> dict[str, FileInfo]:
        """As in `Files`."""
        top = self.root / folder
        paths = (Path(place) / name for place, _, names in os.walk(top) for name in names)
        return {
            path.relative_to(top).as_posix(): FileInfo(found.st_size, _version(found))
            for path, found in ((path, path.stat()) for path in paths)
        }

    def names(self, folder: str) -> tuple[str, ...]:
        """As in `Files`."""
        try:
            return tuple(sorted(os.listdir(self.root / folder)))
        except FileNotFoundError:
            return ()
        except NotADirectoryError:
            if not self.root.is_dir():
                raise self._no_folder() from None
            return ()

    def _no_folder(self) -> StoreUnavailableError:
        file = next(place for place in (self.root, *self.root.parents) if os.path.lexists(place))
        return StoreUnavailableError(
            f"The store {self.root} cannot be a folder: {file} is a file. "
            "Give the path of a folder."
        )

    def settle(self, folder: str) -> None:
        """As in `Files`: every folder below `folder` and all above it up to the root."""
        for place, _, _ in os.walk(self.root / folder):
            _sync_folder(Path(place))
        for parent in (self.root / folder).parents:
            _sync_folder(parent)
            if parent == self.root:
                break

    def remove(self, path: str) -> None:
        """As in `Files`."""
        target = self.root / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)

    def capabilities(self) -> Capabilities:
        """As in `Files`; a folder can do both."""
        return Capabilities(conditional_create=True, conditional_replace=True)

    def prepare(self, min_free_bytes: int) -> None:
        """As in `Files`, and with at least `min_free_bytes` left on the disk."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            _write_beside(self.root / "probe", b"probe").unlink()
        except (FileExistsError, NotADirectoryError) as error:
            raise self._no_folder() from error
        except OSError as error:
            raise StoreUnavailableError(
                f"The store {self.root} cannot be written: {error.strerror or error}. "
                "Make it writable, or choose another store."
            ) from error
        free = shutil.disk_usage(self.root).free
        if free < min_free_bytes:
            raise StoreUnavailableError(
                f"The disk of the store {self.root} has {free / 1e6:,.0f} MB left, expected "
                f"{min_free_bytes / 1e6:,.0f} MB or more. Free some space, or choose another store."
            )


def _version(found: os.stat_result) -> str:
    return f"{found.st_size:x}-{found.st_ino:x}-{found.st_mtime_ns:x}"


def _write_beside(target: Path, data: bytes) -> Path:
    """A synced temporary file with `data` in the folder of `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _link_if_absent(temporary: Path, target: Path, data: bytes) -> bool:
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _create_exclusively(target, data)
    return True


def _create_exclusively(target: Path, data: bytes) -> bool:
    """For disks without hard links (exFAT): a crash leaves an invalid record, which is a miss."""
    try:
        with target.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def _linked(source: Path, target: Path) -> bool:
    """Whether `target` could be made a second name of `source`."""
    if source.is_symlink():
        return False
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.EXDEV, *_NO_HARD_LINKS):
            return False
        raise
    return True


def _sync_file(path: Path) -> None:
    # Windows flushes only what is open for writing.
    with path.open("r+b" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
