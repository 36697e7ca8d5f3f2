"""How fast a place for files is: large ones written and read, and how many small ones a second."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from nanochat_core.artifacts.filesystems import Files

FIRST_BYTES = 2 * 2**20
MAX_BYTES = 64 * 2**20
SMALL_BYTES = 1000
MAX_SMALL_FILES = 200

Value = TypeVar("Value")


@dataclass(frozen=True)
class FileSpeed:
    """Bytes a second of one large file, files a second of small ones, each safe on the disk.

    `keeps_first`: a second writer of the same file is refused, on which publishing relies.
    """

    write_bytes_per_second: float
    read_bytes_per_second: float
    files_per_second: float
    keeps_first: bool


def measure_files(files: Files, *, seconds: float = 0.5) -> FileSpeed:
    """Write, read and remove a few files in the cache folder of a store, about `seconds` each.

    A folder that was not there is removed again. Raises what the place raises.
    """
    folder = f"cache/doctor-{uuid4().hex[:12]}"
    root = files.local_path("")
    is_new = root is not None and not root.exists()
    try:
        return _measure(files, folder, seconds)
    finally:
        files.remove(folder)
        if root is not None and is_new:
            with suppress(OSError):  # somebody else has begun to use it
                (root / "cache").rmdir()
                root.rmdir()


def _measure(files: Files, folder: str, seconds: float) -> FileSpeed:
    first, path = f"{folder}/first", f"{folder}/large"
    # Random: some disks and networks pack what repeats.
    data = os.urandom(FIRST_BYTES)
    guess = FIRST_BYTES / _seconds(lambda: files.write(first, data))
    data = os.urandom(int(min(max(guess * seconds, FIRST_BYTES), MAX_BYTES)))
    write = _seconds(lambda: files.write(path, data))
    _forget_cached(files.local_path(path))
    read = _seconds(lambda: files.read(path))
    return FileSpeed(
        write_bytes_per_second=len(data) / write,
        read_bytes_per_second=len(data) / read,
        files_per_second=_small_files(files, folder, seconds),
        keeps_first=not files.create(first, b"second"),
    )


def _small_files(files: Files, folder: str, seconds: float) -> float:
    data, count, started = os.urandom(SMALL_BYTES), 0, time.perf_counter()
    while count < MAX_SMALL_FILES and time.perf_counter() - started < seconds:
        files.create(f"{folder}/small-{count}", data)
        count += 1
    return count / (time.perf_counter() - started)


def _forget_cached(path: Path | None) -> None:
    """Let the next read of a local file come from its disk, where the system can do that."""
    if path is None or not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return max(time.perf_counter() - started, 1e-9)


def within(seconds: float, work: Callable[[], Value]) -> Value:
    """What `work` returns or raises; TimeoutError when it takes longer, and goes on without us."""
    results: list[Value] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  raised again by who waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="within")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
