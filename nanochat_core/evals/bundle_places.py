"""An evaluation bundle as a folder, whatever it is: a folder or a zip (torch-free)."""

import os
import shutil
from pathlib import Path

from nanochat_core.errors import ConfigError
from nanochat_core.evals.bundle import Bundle, read_bundle
from nanochat_core.evals.unzip import sha256_of, unzip

LISTING = "core.yaml"
UNPACKED = "bundles"


def open_bundle(text: str | Path, base: Path) -> tuple[Path, Bundle]:
    """The folder of a bundle, and its tasks; a zip is unpacked once, below `base`.

    Raises ConfigError for a path that is no bundle, DataError for a malformed one.
    """
    path = Path(text).expanduser()
    if path.is_file():
        path = _unpacked(path, base / UNPACKED)
    folder = _with_listing(path)
    if folder is None:
        raise ConfigError(
            f"{text}: no {LISTING} in there; give the folder or the zip of the CORE "
            "tasks (eval_bundle), with core.yaml, eval_meta_data.csv and eval_data/"
        )
    return folder.absolute(), read_bundle(folder)


def _with_listing(path: Path) -> Path | None:
    candidates = [path, *(sorted(path.iterdir()) if path.is_dir() else [])]
    return next((place for place in candidates if (place / LISTING).is_file()), None)


def _unpacked(archive: Path, place: Path) -> Path:
    folder = place / sha256_of(archive)[:16]
    if not folder.is_dir():
        # Several processes may do this at once, and one of them is first.
        unfinished = place / f"{folder.name}.{os.getpid()}"
        unzip(archive, unfinished)
        try:
            os.replace(unfinished, folder)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder
