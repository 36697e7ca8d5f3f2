"""Models that were made by hand: `<base>/<kind>/<tag>/model-<number>` (torch-free).

A run writes into the next number, and `outputs.json` last: what has it is whole, the highest of
them is the model, and a run that dies leaves the one before it untouched.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nanochat_core.artifacts.location import user_cache_folder
from nanochat_core.config.job import OUTPUTS_FILE
from nanochat_core.errors import ConfigError

BY_HAND = "by-hand"
TOKENIZER_FOLDER = "tokenizer"
_RESULT = re.compile(r"(?:model|result)-([0-9]{1,6})")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def by_hand_base(environ: Mapping[str, str]) -> Path:
    """NANOCHAT_BASE_DIR/by-hand, else a per-user cache folder; always on this machine's disk.

    `environ` is the environment as the entry point read it.
    """
    base = environ.get("NANOCHAT_BASE_DIR", "")
    if base and "://" not in base:
        return Path(base).expanduser().absolute() / BY_HAND
    return user_cache_folder() / BY_HAND


def check_tag(tag: str) -> str:
    """`tag` if it can name a folder, else ConfigError."""
    if not _TAG.fullmatch(tag):
        raise ConfigError(
            f"model tag {tag!r}: use letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return tag


@dataclass(frozen=True)
class ByHandModel:
    """One finished model and when it was finished (ISO 8601, UTC, as manifests say it)."""

    kind: str
    folder: Path
    created: str

    @property
    def tokenizer(self) -> Path:
        """The copy of its tokenizer."""
        return self.folder / TOKENIZER_FOLDER


def find_by_hand(base: Path, kind: str, tag: str) -> ByHandModel | None:
    """The newest finished model of a tag, if there is one."""
    if not _TAG.fullmatch(tag):
        return None
    folder = newest_result(base / kind / tag)
    return None if folder is None else _model(kind, folder)


def list_by_hand(base: Path, kind: str) -> list[ByHandModel]:
    """The newest finished model of every tag of a kind, oldest first."""
    place = base / kind
    tags = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    found = [find_by_hand(base, kind, tag) for tag in tags]
    return sorted((model for model in found if model is not None), key=lambda m: m.created)


def newest_result(folder: Path) -> Path | None:
    """The finished result with the highest number in a folder of one kind and tag."""
    whole = [path for path in numbered_results(folder) if (path / OUTPUTS_FILE).is_file()]
    return whole[-1] if whole else None


def numbered_results(folder: Path) -> list[Path]:
    """Every result, finished or not, in the order of their numbers."""
    if not folder.is_dir():
        return []
    numbered = [
        (match, path) for path in folder.iterdir() if (match := _RESULT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(numbered, key=lambda pair: int(pair[0][1]))]


def result_number(path: Path) -> int:
    """The number in the name of a result folder."""
    match = _RESULT.fullmatch(path.name)
    assert match is not None, f"{path} is no result folder"
    return int(match[1])


def _model(kind: str, folder: Path) -> ByHandModel:
    finished = datetime.fromtimestamp((folder / OUTPUTS_FILE).stat().st_mtime, UTC)
    return ByHandModel(kind, folder, finished.isoformat(timespec="seconds"))
