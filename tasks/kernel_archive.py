"""A folder of compiled code as one archive, the same bytes for the same files."""

import gzip
import os
import stat
import tarfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from nanochat_core.artifacts.types import check_relative_path
from nanochat_core.errors import DamagedFileError

MAX_BYTES = 512 * 2**20
SETTLED_SECONDS = 2.0
"""The linker writes in place, so what is younger may be half of a file of another run."""
_NEVER_SHARED = (".lock", ".tmp")
_LOCKS = "locks"
_GZIP_LEVEL = 3
"""A fifth larger than the best, in a third of the time."""


def kernel_files(folder: Path, *, settled_seconds: float = SETTLED_SECONDS) -> dict[str, int]:
    """Path -> bytes of the whole files of a kernel folder; nothing where there is none."""
    newest = time.time() - settled_seconds
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != _LOCKS)
        for name in sorted(names):
            if name.startswith(".") or name.endswith(_NEVER_SHARED):
                continue
            path = Path(place, name)
            with suppress(FileNotFoundError):  # another run writes here, too
                state = path.lstat()
                if stat.S_ISREG(state.st_mode) and state.st_mtime <= newest:
                    found[path.relative_to(folder).as_posix()] = state.st_size
    return found


def pack(folder: Path, names: Iterable[str], archive: Path) -> None:
    """Write those files of a folder into a new archive, without times or owners."""
    with (
        archive.open("xb") as raw,
        gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(names):
            path = folder / name
            member = tarfile.TarInfo(name)
            with path.open("rb") as file:
                state = os.fstat(file.fileno())
                member.size = state.st_size
                member.mode = 0o755 if state.st_mode & stat.S_IXUSR else 0o644
                tar.addfile(member, file)


def unpack_missing(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES) -> list[str]:
    """Add the files of an archive that a folder does not have, each at once; returns all names.

    Only plain files below the folder are taken. Raises DamagedFileError for anything else, and
    for more than `max_bytes`.
    """
    names, total = [], 0
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            total += member.size
            if not member.isreg() or total > max_bytes:
                kind = "not a plain file" if not member.isreg() else f"over {max_bytes:,} bytes"
                raise DamagedFileError(f"{member.name} in an archive of kernels is {kind}.")
            target = folder / _checked(member.name)
            names.append(member.name)
            if not target.exists():
                _extract(tar, member, target)
    return names


def _checked(name: str) -> str:
    try:
        return check_relative_path(name)
    except ValueError as error:
        raise DamagedFileError(f"an archive of kernels names a file outside: {error}.") from error


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None, f"{member.name} is a plain file"
    # A hidden name is no kernel; a reader of the folder sees the whole file or none.
    temporary = target.parent / f".tmp-{uuid4().hex}"
    try:
        temporary.write_bytes(content.read())
        temporary.chmod(member.mode & 0o755)
        # It is whole, so a job that ends in a moment may count it.
        settled = time.time() - SETTLED_SECONDS
        os.utime(temporary, (settled, settled))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
