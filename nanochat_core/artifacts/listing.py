"""What lies in a store and since when: one listing, nothing read."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.translate import reading


@dataclass(frozen=True)
class Listed:
    """One file, or one folder without any; `path` is relative to the folder that was listed."""

    path: str
    bytes: int
    modified: float
    """Seconds since 1970."""


def listed(files: Files, folder: str, *, but: Collection[str] = ()) -> list[Listed]:
    """Every file below `folder`, in no order; none when it does not exist.

    `but` names what is left out at the top of it. On a disk empty folders are listed, too: what a
    killed process leaves may be one.
    """
    with reading(f"the store below {folder or files.url}"):
        root = files.local_path(folder)
        found = _elsewhere(files, folder) if root is None else _on_disk(root, "", but)
        return [file for file in found if file.path.split("/", 1)[0] not in but]


def _on_disk(folder: Path, before: str, but: Collection[str] = ()) -> Iterator[Listed]:
    is_empty = True
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_empty = False
                if entry.name in but:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from _on_disk(Path(entry.path), f"{before}{entry.name}/")
                    continue
                try:
                    state = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed since
                yield Listed(f"{before}{entry.name}", state.st_size, state.st_mtime)
        if is_empty and before:
            yield Listed(before.rstrip("/"), 0, folder.stat().st_mtime)
    except (FileNotFoundError, NotADirectoryError):
        return


def _elsewhere(files: Files, folder: str) -> Iterator[Listed]:
    for path, info in files.infos(folder).items():
        if path and not path.endswith("/"):
            yield Listed(path, info.size, info.modified)
