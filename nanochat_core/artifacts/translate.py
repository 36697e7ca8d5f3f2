"""Turns errors of disks and networks into the store's own, which say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from nanochat_core.errors import DamagedFileError, StoreUnavailableError

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BYTES_ARE_GONE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EIO)


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Any OSError inside becomes StoreUnavailableError with a remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        remedy = "Make the store writable and reachable, then run again; finished work is kept."
        if error.errno in _DISK_IS_FULL:
            remedy = "Free some space there, then run again; finished work is kept."
        raise StoreUnavailableError(f"Could not write {what}: {reason}. {remedy}") from error


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Bytes that are gone become DamagedFileError, a store out of reach StoreUnavailableError.

    The difference matters: damage is made again, while a network that fails for a minute must not
    cost a day of training.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        if isinstance(error, FileNotFoundError) or error.errno in _BYTES_ARE_GONE:
            raise DamagedFileError(f"{what} is damaged: {reason}.") from error
        raise StoreUnavailableError(
            f"Could not read {what}: {reason}. "
            "Check that the store is reachable and readable, then run again."
        ) from error
