"""Saving checkpoints beside training: a copy to host memory, then a thread without collectives."""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

from nanochat_core.artifacts.sealed import seal
from nanochat_core.errors import CheckpointError
from nanochat_core.optim.groups import StateShard
from nanochat_core.training.checkpoint_files import (
    FORMAT,
    MANIFEST,
    checkpoint_folders,
    parse_step_folder,
    step_folder_name,
)

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
PEER_TIMEOUT_SECONDS = 600.0


class CheckpointWriter:
    """Writes step checkpoints of one rank; rank 0 also writes the manifest and prunes.

    `token` (8 hex digits, equal on all ranks, new in every process) keeps folders from being
    reused. All ranks must see the same file system.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: str,
        token: str,
        rank: int = 0,
        world_size: int = 1,
        keep: int = 2,
    ) -> None:
        self.folder, self.identity, self.token = folder, identity, token
        self.rank, self.world_size, self.keep = rank, world_size, keep
        self.last_step = -1
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        step: int,
        shards: Sequence[StateShard],
        scalars: Mapping[str, Any],
        attachments: Mapping[str, bytes],
    ) -> None:
        """Copy `shards` to host memory and write them in a thread; blocks for the copy only.

        An error of the previous write is raised here. Saving the same step again does nothing.
        """
        if step == self.last_step:
            return
        self.wait()
        self.last_step = step
        copies = [
            StateShard(s.name, s.full_shape, s.start, s.tensor.detach().to("cpu", copy=True))
            for s in shards
        ]
        arguments = (step, copies, dict(scalars), dict(attachments))
        self._thread = threading.Thread(target=self._guarded_write, args=arguments)
        self._thread.start()

    def wait(self) -> None:
        """Return when the last save is on disk; raise its error if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise CheckpointError(
                f"the last checkpoint could not be written: {error}. Make room for it in "
                f"{self.folder} and run again, which continues from the one before"
            ) from error

    def _guarded_write(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:  # noqa: BLE001 - re-raised in the training thread by wait()
            self._error = error

    def _write(
        self,
        step: int,
        shards: list[StateShard],
        scalars: dict[str, Any],
        attachments: dict[str, bytes],
    ) -> None:
        target = self.folder / step_folder_name(step, self.token)
        target.mkdir(parents=True, exist_ok=True)
        self._write_own_part(target, shards)
        if self.rank == 0:
            parts = self._await_parts(target)
            files = [_file_record(path) for path in sorted(target.glob("rank-*.json"))]
            files += [{"path": part["file"], "sha256": part["file_sha256"]} for part in parts]
            for name, data in attachments.items():
                _write_durably(target / name, data)
                files.append(_file_record(target / name))
            manifest = {
                "format": FORMAT,
                "step": step,
                "identity": self.identity,
                "world_size": self.world_size,
                "files": files,
                "tensors": _merge_tensors(parts),
                "scalars": scalars,
                "attachments": sorted(attachments),
            }
            _write_durably(target / MANIFEST, seal(manifest))
            _sync_folder(self.folder)
            prune(self.folder, self.keep, newest=target)

    def _write_own_part(self, target: Path, shards: list[StateShard]) -> None:
        stem = f"rank-{self.rank:03d}-of-{self.world_size:03d}"
        keys = [f"{shard.name}@{shard.start}" for shard in shards]
        data = safetensors_bytes(
            {key: s.tensor.contiguous() for key, s in zip(keys, shards, strict=True)}
        )
        _write_durably(target / f"{stem}.safetensors", data)
        part = {
            "file": f"{stem}.safetensors",
            "file_sha256": hashlib.sha256(data).hexdigest(),
            "tensors": [
                {
                    "name": shard.name,
                    "key": key,
                    "shape": list(shard.full_shape),
                    "start": shard.start,
                    "stop": shard.start + (shard.tensor.shape[0] if shard.full_shape else 0),
                }
                for key, shard in zip(keys, shards, strict=True)
            ],
        }
        _write_durably(target / f"{stem}.json", seal(part))

    def _await_parts(self, target: Path) -> list[dict[str, Any]]:
        deadline = time.monotonic() + PEER_TIMEOUT_SECONDS
        parts = []
        for rank in range(self.world_size):
            path = target / f"rank-{rank:03d}-of-{self.world_size:03d}.json"
            while not path.exists():
                if time.monotonic() > deadline:
                    raise CheckpointError(f"rank {rank} did not write its part of {target.name}")
                time.sleep(POLL_SECONDS)
            parts.append(json.loads(path.read_bytes()))
        return parts


def prune(folder: Path, keep: int, *, newest: Path) -> None:
    """Remove all but `newest`, which was just written, and the `keep - 1` finished ones before it.

    Steps that are no older and of another process are damaged, or training would have gone on from
    them: they must not count. The manifest goes first, so that a crash in between leaves no half
    checkpoint that looks whole.
    """
    step, token = parse_step_folder(newest)
    kept = 1
    for other_step, path in checkpoint_folders(folder):
        # Another rank of this process group may be a step ahead.
        if path == newest or (other_step > step and parse_step_folder(path)[1] == token):
            continue
        if other_step < step and kept < keep:
            kept += (path / MANIFEST).exists()
            continue
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def spread_over_ranks(
    tensors: Mapping[str, torch.Tensor], rank: int, world_size: int
) -> list[StateShard]:
    """The replicated tensors that this rank writes: each goes to the least loaded rank."""
    loads = [0] * world_size
    own = []
    for name in sorted(tensors, key=lambda name: (-tensors[name].numel(), name)):
        owner = loads.index(min(loads))
        loads[owner] += tensors[name].numel() * tensors[name].element_size()
        if owner == rank:
            own.append(StateShard(name, tuple(tensors[name].shape), 0, tensors[name]))
    return own


def _file_record(path: Path) -> dict[str, Any]:
    return {"path": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _merge_tensors(parts: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        for tensor in part["tensors"]:
            entry = merged.setdefault(tensor["name"], {"shape": tensor["shape"], "slices": []})
            piece = {key: tensor[key] for key in ("key", "start", "stop")}
            entry["slices"].append({**piece, "file": part["file"]})
    return merged


def _write_durably(path: Path, data: bytes) -> None:
    """Write a new file so that it is either absent or whole, also after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
