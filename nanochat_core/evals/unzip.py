"""Unpack a downloaded bundle: only the pinned bytes, and only inside the folder (torch-free)."""

import hashlib
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from nanochat_core.errors import DamagedFileError, DataError

MAX_UNPACKED_BYTES = 4 * 2**30
"""More than any evaluation bundle holds; a larger archive is a mistake or an attack."""


def unzip_pinned(archive: Path, folder: Path, *, sha256: str) -> None:
    """Unpack `archive` into `folder`, which is made.

    Raises DamagedFileError when the bytes are not those of `sha256`, DataError for a file that is
    no zip, a member that would land outside the folder, a link, or more than 4 GiB in all.
    Nothing is written before all of that is checked.
    """
    given = sha256_of(archive)
    if given != sha256:
        raise DamagedFileError(
            f"{archive} has sha256 {given}, expected {sha256}; delete it and download it again"
        )
    unzip(archive, folder)


def unzip(archive: Path, folder: Path) -> None:
    """As `unzip_pinned`, for an archive whose bytes the user vouches for."""
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = [member for member in bundle.infolist() if not member.is_dir()]
            _check_members(archive, members)
            for member in members:
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{archive} is not a readable zip file ({error})") from error


def _check_members(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or is_link:
            raise DataError(
                f"{archive}: refused the member {member.filename!r}, which would not be a plain "
                "file inside the target folder; do not trust this archive"
            )
    total = sum(member.file_size for member in members)
    if total > MAX_UNPACKED_BYTES:
        raise DataError(
            f"{archive} unpacks to {total:,} bytes, more than the {MAX_UNPACKED_BYTES:,} allowed"
        )


def sha256_of(path: Path) -> str:
    """Of a file's bytes; DataError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
