"""The files of one step checkpoint and how they are read back, at any number of ranks.

    checkpoints/best.json                 the best step so far, its value and its folder
    checkpoints/step-00000250-1f3a5b7c/
        rank-000-of-002.safetensors       tensors and slices of tensors
        rank-000-of-002.json              what that file holds, with its size and sha256
        metrics.jsonl                     and other attachments, as they were at that step
        manifest.json                     written last: everything above, scalars, its own sha256

A folder without a valid manifest is not a checkpoint. Nothing but best.json is ever written twice.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from nanochat_core.artifacts.sealed import unseal
from nanochat_core.errors import CheckpointError, DamagedFileError

log = logging.getLogger(__name__)

FORMAT = 2
MANIFEST = "manifest.json"
BEST = "best.json"
FOLDER_PATTERN = re.compile(r"^step-(\d{8,})-([0-9a-f]{8})$")


@dataclass(frozen=True)
class Best:
    """Which checkpoint is the best so far; a lower value is better."""

    step: int
    value: float
    folder: str


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
        self._opened: dict[str, Any] = {}

    @classmethod
    def open(cls, folder: Path, identity: str) -> "Checkpoint":
        """Read and verify every byte of a checkpoint; CheckpointError names what is wrong."""
        checkpoint = cls(folder, read_manifest(folder, identity))
        for record in checkpoint._files:
            _verify(folder, record)
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
        shape, slices = entry["shape"], entry["slices"]
        if not shape:
            return self._load(slices[0], None)
        low, high = start or 0, shape[0] if stop is None else stop
        if low == high:
            first = slices[0]["start"]
            return self._load(slices[0], (first, first))
        parts = [
            self._load(piece, (max(low, piece["start"]), min(high, piece["stop"])))
            for piece in slices
            if piece["start"] < high and low < piece["stop"]
        ]
        if sum(part.shape[0] for part in parts) != high - low:
            raise CheckpointError(
                f"{self.folder.name} has no rows [{low}:{high}] of {name}, which is of shape "
                f"{tuple(shape)}"
            )
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def attachment(self, name: str) -> bytes | None:
        """Bytes of a small file that was saved beside the tensors."""
        return (self.folder / name).read_bytes() if name in self._attachments else None

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._tensors:
            raise CheckpointError(
                f"{self.folder.name} has no tensor named {name}; it has {len(self._tensors)} "
                f"tensors, {', '.join(self.names[:3])} and others: it is of another model"
            )
        return self._tensors[name]

    def _load(self, piece: dict[str, Any], rows: tuple[int, int] | None) -> torch.Tensor:
        file = self._file(piece["file"])
        if rows is None:
            return file.get_tensor(piece["key"])  # type: ignore[no-any-return]
        offset = piece["start"]
        view = file.get_slice(piece["key"])
        return view[rows[0] - offset : rows[1] - offset]  # type: ignore[no-any-return]

    def _file(self, name: str) -> Any:
        """A tensor file, opened once: its header has a line for each of maybe 1,000 tensors."""
        if name not in self._opened:
            self._opened[name] = safe_open(str(self.folder / name), framework="pt")
        return self._opened[name]


def read_manifest(folder: Path, identity: str) -> dict[str, Any]:
    """The manifest of a checkpoint of this recipe; CheckpointError says why there is none."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder.name} has no {MANIFEST}: it was never finished") from error
    manifest = _opened(data, f"{folder.name}/{MANIFEST}")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder.name} has format {manifest.get('format')}, expected {FORMAT}: another "
            "version of the code wrote it, and only that version can go on from it"
        )
    if manifest["identity"] != identity:
        raise CheckpointError(f"{folder.name} belongs to another recipe or other inputs")
    return manifest


def checkpoint_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, folder) of every step folder, finished or not, newest step first."""
    if not folder.is_dir():
        return
    found = [(FOLDER_PATTERN.match(path.name), path) for path in folder.iterdir()]
    steps = [(int(match.group(1)), path) for match, path in found if match]
    yield from sorted(steps, key=lambda item: (item[0], item[1].name), reverse=True)


def newest_checkpoint(folder: Path, identity: str) -> Checkpoint | None:
    """The newest whole checkpoint; damaged or unfinished ones are passed over with a log line.

    Raises:
        CheckpointError: one cannot be read at all. The disk may be away for a moment only, and
            going on from an older one would soon remove it.
    """
    for step, path in checkpoint_folders(folder):
        try:
            return Checkpoint.open(path, identity)
        except CheckpointError as error:
            log.warning("step %d cannot be resumed: %s", step, error)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of step {step:,} cannot be read: {error}. Try again when the disk "
                f"is back; if it stays like that, remove {path}, and training goes on from the "
                "checkpoint before"
            ) from error
    return None


def best_checkpoint(folder: Path, identity: str) -> Checkpoint | None:
    """The best checkpoint, if one was marked and is whole; why not is said in the log."""
    try:
        best = read_best(folder, identity)
        return None if best is None else Checkpoint.open(folder / best.folder, identity)
    except CheckpointError as error:
        log.warning("the best checkpoint cannot be used: %s", error)
    return None


def read_best(folder: Path, identity: str) -> Best | None:
    """What best.json says, None if there is none; CheckpointError if it is of no use."""
    try:
        data = (folder / BEST).read_bytes()
    except FileNotFoundError:
        return None
    body = _opened(data, BEST)
    if body.get("format") != FORMAT or body.get("identity") != identity:
        raise CheckpointError(f"{BEST} belongs to another recipe or another version of the code")
    return Best(body["step"], body["value"], body["folder"])


def describe_newest(folder: Path) -> str:
    """The newest finished checkpoint in words, for messages; its bytes are not verified."""
    for step, path in checkpoint_folders(folder):
        if (path / MANIFEST).exists():
            return f"step {step:,} in {path.name}"
    return "no checkpoint yet"


def _opened(data: bytes, place: str) -> dict[str, Any]:
    try:
        return unseal(data, place)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error


def _verify(folder: Path, record: dict[str, Any]) -> None:
    """Compare a file with its record; the size first, which finds a file cut short at once."""
    path, place = folder / record["path"], f"{folder.name}/{record['path']}"
    try:
        size = path.stat().st_size
        if size != record["bytes"]:
            raise CheckpointError(f"{place} has {size:,} bytes, expected {record['bytes']:,}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder.name} lacks {record['path']}") from error
    if digest != record["sha256"]:
        raise CheckpointError(f"{place} does not match its recorded sha256")
