"""Turns errors of disks and networks into the store's own, which say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from nanochat_core.artifacts.outages import reason_of
from nanochat_core.errors import DamagedFileError, StoreUnavailableError

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BYTES_ARE_GONE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EIO)


# Their connection errors are no OSError; named by module, so that a local store imports neither.
_NETWORK_MODULES = ("botocore", "aiobotocore", "aiohttp")


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Errors of disk and network inside become StoreUnavailableError with a remedy."""
    try:
        yield
    except Exception as error:
        if not _is_of_disk_or_network(error):
            raise
        remedy = "Make the store writable and reachable, then run again; finished work is kept."
        if getattr(error, "errno", None) in _DISK_IS_FULL:
            remedy = "Free some space there, then run again; finished work is kept."
        raise StoreUnavailableError(
            f"Could not write {what}: {reason_of(error)}. {remedy}"
        ) from error


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Bytes that are gone become DamagedFileError, a store out of reach StoreUnavailableError.

    The difference matters: damage is made again, while a network that fails for a minute must not
    cost a day of training.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_disk_or_network(error):
            raise
        is_gone = isinstance(error, FileNotFoundError)
        if is_gone or getattr(error, "errno", None) in _BYTES_ARE_GONE:
            raise DamagedFileError(f"{what} is damaged: {reason_of(error)}.") from error
        raise StoreUnavailableError(
            f"Could not read {what}: {reason_of(error)}. "
            "Check that the store is reachable and readable, then run again."
        ) from error


def _is_of_disk_or_network(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.startswith(_NETWORK_MODULES)
