"""The files of one step checkpoint and how they are read back, at any number of ranks.

    checkpoints/step-00000250-1f3a/
        rank-000-of-002.safetensors   tensors and slices of tensors
        rank-000-of-002.json          what that file holds, with its sha256
        manifest.json                 written last: everything above, scalars, its own sha256

A folder without a valid manifest is not a checkpoint. Nothing is ever written twice.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from nanochat_core.artifacts.sealed import unseal
from nanochat_core.errors import CheckpointError, DamagedFileError

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
FOLDER_PATTERN = re.compile(r"^step-(\d{8})-([0-9a-f]{8})$")


def step_folder_name(step: int, token: str) -> str:
    """Folder of one save; `token` differs between processes, so that none is reused."""
    return f"step-{step:08d}-{token}"


def parse_step_folder(path: Path) -> tuple[int, str]:
    """Step and token of a step folder."""
    match = FOLDER_PATTERN.match(path.name)
    if match is None:
        raise CheckpointError(f"{path} is no step folder")
    return int(match[1]), match[2]


class Checkpoint:
    """A verified step checkpoint, open for reading."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.step: int = manifest["step"]
        self.scalars: dict[str, Any] = manifest["scalars"]
        self._tensors: dict[str, dict[str, Any]] = manifest["tensors"]
        self._files: list[dict[str, Any]] = manifest["files"]
        self._attachments: list[str] = manifest["attachments"]

    @classmethod
    def open(cls, folder: Path, identity: str) -> "Checkpoint":
        """Read and verify every byte of a checkpoint; CheckpointError names what is wrong."""
        path = folder / MANIFEST
        if not path.exists():
            raise CheckpointError(f"{folder.name} has no {MANIFEST}: it was never finished")
        try:
            manifest = unseal(path.read_bytes(), f"{folder.name}/{MANIFEST}")
        except DamagedFileError as error:
            raise CheckpointError(str(error)) from error
        if manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder.name} has format {manifest.get('format')}, expected {FORMAT}"
            )
        if manifest["identity"] != identity:
            raise CheckpointError(f"{folder.name} belongs to another recipe or other inputs")
        checkpoint = cls(folder, manifest)
        checkpoint._verify_files()
        return checkpoint

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Full shape of a tensor."""
        return tuple(self._entry(name)["shape"])

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """A tensor, or its rows [start, stop) along dimension 0, on the CPU."""
        entry = self._entry(name)
        shape = entry["shape"]
        if not shape:
            return self._load(entry["slices"][0], None)
        low, high = start or 0, shape[0] if stop is None else stop
        parts = [
            self._load(piece, (max(low, piece["start"]), min(high, piece["stop"])))
            for piece in sorted(entry["slices"], key=lambda piece: int(piece["start"]))
            if piece["start"] < high and low < piece["stop"]
        ]
        result = torch.cat(parts) if len(parts) != 1 else parts[0]
        if result.shape[0] != high - low:
            raise CheckpointError(f"{self.folder.name} lacks rows of {name}[{low}:{high}]")
        return result

    def attachment(self, name: str) -> bytes | None:
        """Bytes of a small file that was saved beside the tensors."""
        return (self.folder / name).read_bytes() if name in self._attachments else None

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._tensors:
            raise CheckpointError(f"{self.folder.name} has no tensor named {name}")
        return self._tensors[name]

    def _load(self, piece: dict[str, Any], rows: tuple[int, int] | None) -> torch.Tensor:
        with safe_open(str(self.folder / piece["file"]), framework="pt") as file:
            if rows is None:
                return file.get_tensor(piece["key"])  # type: ignore[no-any-return]
            offset = piece["start"]
            view = file.get_slice(piece["key"])
            return view[rows[0] - offset : rows[1] - offset]  # type: ignore[no-any-return]

    def _verify_files(self) -> None:
        for record in self._files:
            path = self.folder / record["path"]
            if not path.exists():
                raise CheckpointError(f"{self.folder.name} lacks {record['path']}")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != record["sha256"]:
                raise CheckpointError(
                    f"{self.folder.name}/{record['path']} does not match its recorded sha256"
                )


def checkpoint_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, folder) of every step folder, finished or not, newest step first."""
    if not folder.is_dir():
        return
    found = [(FOLDER_PATTERN.match(path.name), path) for path in folder.iterdir()]
    steps = [(int(match.group(1)), path) for match, path in found if match]
    yield from sorted(steps, key=lambda item: (item[0], item[1].name), reverse=True)


def newest_checkpoint(folder: Path, identity: str) -> Checkpoint | None:
    """The newest whole checkpoint; damaged or unfinished ones are passed over with a log line."""
    for step, path in checkpoint_folders(folder):
        try:
            return Checkpoint.open(path, identity)
        except CheckpointError as error:
            log.warning("step %d cannot be resumed: %s", step, error)
    return None
