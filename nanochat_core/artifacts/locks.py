"""One maker of an artifact at a time: an OS lock that ends with the process that holds it."""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.artifacts.translate import writing
from nanochat_core.errors import DamagedFileError, StationBusyError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
SAY_AGAIN_SECONDS = 60.0

# A forked child shares the lock of its parent for as long as it keeps the descriptor open; an
# orphan of a killed run would hold it for ever. So children close what is listed here.
_held: set[int] = set()
_fork_hook = threading.Lock()
_fork_hook_is_set = False


@contextmanager
def locked(path: Path, what: str, *, wait: bool) -> Iterator[None]:
    """Hold the lock file `path` for the making of `what`.

    When somebody else holds it: StationBusyError naming host, process id and since when, or, with
    `wait`, a log line and patience. The system frees the lock when its holder dies, in any way.
    """
    descriptor = _open(path)
    try:
        with writing(f"the lock {path}"):
            _take(descriptor, path, what, wait)
            _write_owner(descriptor)
        _held.add(descriptor)
        try:
            yield
        finally:
            _held.discard(descriptor)
            os.ftruncate(descriptor, 0)
            _unlock(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    _close_in_forked_children()
    with writing(f"the lock {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _take(descriptor: int, path: Path, what: str, wait: bool) -> None:
    next_word = time.monotonic()
    while not _try_lock(descriptor):
        owner = _owner(path)
        if not wait:
            raise StationBusyError(
                f"{what} is being made right now by {owner}. "
                "Wait for it with --wait, or stop that run first."
            )
        if time.monotonic() >= next_word:
            log.warning("waiting for %s, which is being made by %s", what, owner)
            next_word = time.monotonic() + SAY_AGAIN_SECONDS
        time.sleep(POLL_SECONDS)


if sys.platform == "win32":
    # Windows forbids others to read a locked byte, so it lies far behind the owner's text.
    _LOCKED_BYTE = 1 << 30

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _write_owner(descriptor: int) -> None:
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, seal(owner))


def _owner(path: Path) -> str:
    """Who holds the lock, in words; the text may be half written at this very moment."""
    try:
        owner = unseal(path.read_bytes(), str(path))
    except (OSError, DamagedFileError):
        return "another process (which has not written its name yet)"
    return f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"


def _close_in_forked_children() -> None:
    global _fork_hook_is_set
    with _fork_hook:
        if not _fork_hook_is_set and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forget_inherited)
        _fork_hook_is_set = True


def _forget_inherited() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()
