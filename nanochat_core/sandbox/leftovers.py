"""What a program can leave behind where no namespace dies with it: processes and its folder."""

import secrets
import stat
from contextlib import suppress
from pathlib import Path

import psutil

_MARK = "NANOCHAT_SANDBOX"
_TRIES = 20
"""Rounds of a hunt for processes that fork while they are hunted."""


def new_mark() -> dict[str, str]:
    """An environment variable that all processes of one run inherit."""
    return {_MARK: secrets.token_hex(8)}


def end(mark: dict[str, str], uid: int | None) -> None:
    """Kill what has left the process group of a run.

    A process that has also emptied its environment is found only if it has a user of its own.
    """
    for _ in range(_TRIES):
        left = [process for process in psutil.process_iter() if _belongs(process, mark, uid)]
        if not left:
            return
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=0.1)


def _belongs(process: psutil.Process, mark: dict[str, str], uid: int | None) -> bool:
    with suppress(psutil.Error, OSError):
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if uid is not None:
            return process.uids().real == uid
        return process.environ().get(_MARK) == mark[_MARK]
    return False


def remove_folder(folder: str) -> None:
    """Remove a folder in whatever state a program has left it.

    However deep and locked: what lies in its folders is moved up, level by level, so no path gets
    long. Links are never followed, not even one that has taken the place of the folder.
    """
    top = Path(folder)
    with suppress(OSError):
        if top.is_symlink() or not top.is_dir():
            top.unlink()
            return
        while _remove_one_level(top):
            pass
        top.rmdir()


def _remove_one_level(folder: Path) -> bool:
    """Remove what is in a folder, but for the folders in its folders; False if nothing was."""
    has_removed = False
    for path in _unlocked(folder):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                for inner in _unlocked(path):
                    inner.rename(folder / f".{secrets.token_hex(8)}")
                path.rmdir()
            else:
                path.unlink()
            has_removed = True
    return has_removed


def _unlocked(folder: Path) -> list[Path]:
    """What is in a folder, which is opened for it."""
    folder.chmod(stat.S_IRWXU)
    inside = list(folder.iterdir())
    for path in inside:
        if path.is_dir() and not path.is_symlink():
            path.chmod(stat.S_IRWXU)  # a folder that one may not write cannot be moved
    return inside
