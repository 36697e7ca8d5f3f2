"""A file that is being fetched: its bytes so far, where they are from, and their digest."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from nanochat_core.data.recipes import FileDigest
from nanochat_core.data.remote_bytes import Problem, Stream

SUFFIX = ".part"
READ_BYTES = 1 << 20
_EARLIER_PROCESS = "an earlier process"


def holds(path: Path, expected: FileDigest) -> bool:
    """Whether a file is there and is the expected one, by size and sha256."""
    if not path.is_file() or path.stat().st_size != expected.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == expected.sha256


class PartFile:
    """`TARGET.part`: bytes of the file from its start on, of one address or of several."""

    def __init__(self, target: Path, expected: FileDigest, on_bytes: Callable[[int], None]) -> None:
        self.target, self.expected, self._on_bytes = target, expected, on_bytes
        self.path = target.with_name(target.name + SUFFIX)
        self.size = self.furthest = 0
        """Bytes that are there; the most that were, of these addresses, before some were wrong."""
        self._hash = hashlib.sha256()
        self._from: set[str] = set()
        self._current = _EARLIER_PROCESS
        self._may_mix = True
        self._file: BinaryIO

    def __enter__(self) -> "PartFile":
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        while chunk := self._file.read(READ_BYTES):
            self._count(chunk)
        if self.size > self.expected.bytes or (self._is_whole() and not self.is_right()):
            self._clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _is_whole(self) -> bool:
        return self.size == self.expected.bytes

    def is_right(self) -> bool:
        """Whether all bytes are there, and they are the expected ones."""
        return self._is_whole() and self._hash.hexdigest() == self.expected.sha256

    @property
    def bound_to(self) -> str:
        """The address that alone may continue what is there; "" for any.

        Copies of one file may be mixed until that has ended in a wrong digest: from then on it
        must be clear whose bytes are wrong.
        """
        return "" if self._may_mix or not self._from else self._current

    def prepare_for(self, url: str) -> None:
        """Keep what is there only if `url` may continue it."""
        if self.bound_to not in ("", url):
            self._clear()
            self.furthest = 0
        self._current = url

    def begin(self, stream: Stream) -> None:
        """Look at what an answer says of itself; Problem when it is another file."""
        if stream.total not in (None, self.expected.bytes):
            raise Problem(
                "wrong", f"it has {stream.total:,} bytes, expected {self.expected.bytes:,}"
            )
        if stream.start != self.size:
            self._clear()

    def add(self, chunk: bytes) -> None:
        """Append what has arrived; Problem when that is more than the file has."""
        self._file.write(chunk)
        self._count(chunk)
        if self.size > self.expected.bytes:
            self._clear()
            raise Problem("wrong", f"it has more than the expected {self.expected.bytes:,} bytes")

    def check(self) -> None:
        """Problem when the bytes ended too early (they are kept) or are wrong (they are not)."""
        self._file.flush()
        if not self._is_whole():
            raise Problem(
                "busy", f"the connection ended after {self.size:,} of {self.expected.bytes:,} bytes"
            )
        found = self._hash.hexdigest()
        if found == self.expected.sha256:
            return
        is_mixed = bool(self._from - {self._current})
        self._clear()
        self._may_mix, self.furthest = False, 0
        reason = f"its sha256 is {found}, expected {self.expected.sha256}"
        raise Problem("busy" if is_mixed else "wrong", reason, 0.0)

    def publish(self) -> None:
        """Give the bytes, once on disk, their name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.path, self.target)
        _sync_folder(self.target.parent)

    def _count(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._from.add(self._current)
        self.size += len(chunk)
        self.furthest = max(self.furthest, self.size)
        self._on_bytes(len(chunk))

    def _clear(self) -> None:
        self._on_bytes(-self.size)
        self._file.seek(0)
        self._file.truncate()
        self.size, self._hash, self._from = 0, hashlib.sha256(), set()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
