"""Saving checkpoints beside training: a copy to host memory, then a thread without collectives."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nanochat_core.artifacts.canonical import sha256_hex
from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.errors import CheckpointError, RanksLostError
from nanochat_core.optim.groups import StateShard
from nanochat_core.training.checkpoint_buffers import HostBuffers, TensorFile, key_of
from nanochat_core.training.checkpoint_files import (
    FORMAT,
    MANIFEST,
    describe_newest,
    step_folder_name,
)
from nanochat_core.training.checkpoint_keeping import Keeper
from nanochat_core.training.durable_files import make_folder_durably, sync_folder, write_durably

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
PEER_TIMEOUT_SECONDS = 600.0
LINGER_SECONDS = 5.0
"""How long a process that ends still waits for what other ranks write: they may be gone."""


class CheckpointWriter:
    """Writes step checkpoints of one rank; rank 0 also writes the manifest and prunes.

    `token` (8 hex digits, equal on all ranks, new in every process) keeps folders from being
    reused. All ranks must see the same file system. After a resume set `last_step` to its step.
    `stall_seconds` has for each save how long it kept training waiting.
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
        peer_timeout_seconds: float = PEER_TIMEOUT_SECONDS,
    ) -> None:
        self.folder, self.identity, self.token = folder, identity, token
        self.rank, self.world_size = rank, world_size
        self.peer_timeout_seconds = peer_timeout_seconds
        self.last_step = -1
        self.stall_seconds: list[float] = []
        self._keeper = Keeper(folder, identity, token, keep)
        self._buffers = HostBuffers()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_writing(self) -> bool:
        """Whether a save is still on its way to disk."""
        return self._thread is not None and self._thread.is_alive()

    def prepare(self, shards: Sequence[StateShard]) -> None:
        """Allocate the host memory now, which else the first save does."""
        self.wait()
        self._buffers.prepare(shards)

    def save(
        self,
        step: int,
        shards: Sequence[StateShard],
        scalars: Mapping[str, Any],
        attachments: Mapping[str, bytes],
    ) -> None:
        """Copy `shards` to host memory and write them in a thread; blocks for the copy only.

        A save before it that is still being written is waited for; its error is raised here.
        Saving the same step again does nothing.
        """
        if step == self.last_step:
            return
        started = time.perf_counter()
        self.wait()
        if self._keeper.resumed_from is None:
            self._keeper.resumed_from = self.last_step
        tensors = self._buffers.copy(shards)
        part = [_describe(shard) for shard in shards]
        self._start(self._write, step, part, tensors, dict(scalars), dict(attachments))
        # Not before: a step whose copy fails can be saved again.
        self.last_step = step
        self.stall_seconds.append(time.perf_counter() - started)

    def mark_best(self, step: int, value: float) -> None:
        """Keep the checkpoint of `step` if `value` is lower than the best so far; blocks nobody.

        Call it on all ranks or on rank 0 alone, which alone acts, after `save` or a resume: a step
        without a whole checkpoint is never the best, and neither are NaN and infinity. An error is
        raised by the next `save` or `wait`.
        """
        if self.rank == 0 and math.isfinite(value):
            self._start(self._keeper.mark_best, step, value)

    def describe_last(self) -> str:
        """The newest whole checkpoint in words, once what is being written is on disk."""
        if self._thread is not None:
            self._thread.join()
        return describe_newest(self.folder)

    def wait(self) -> None:
        """Return when the last save is on disk; raise its error if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, RanksLostError):
                raise error
            raise CheckpointError(
                f"the last checkpoint could not be written: {error}. Make room for it in "
                f"{self.folder} and run again, which continues from the one before"
            ) from error

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do `work` in a thread, after all that was started before."""
        before = self._thread
        self._thread = threading.Thread(
            target=self._guarded, args=(before, work, arguments), name="checkpoint"
        )
        self._thread.start()

    def _guarded(
        self, before: threading.Thread | None, work: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        try:
            if before is not None:
                before.join()
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - re-raised in the training thread by wait()
            self._error = self._error or error

    def _write(
        self,
        step: int,
        part: list[dict[str, Any]],
        tensors: TensorFile,
        scalars: dict[str, Any],
        attachments: dict[str, bytes],
    ) -> None:
        if self.rank == 0:
            self._keeper.clear()
        tensors.copied()
        target = self.folder / step_folder_name(step, self.token)
        make_folder_durably(target)
        stem = f"rank-{self.rank:03d}-of-{self.world_size:03d}"
        file = write_durably(target / f"{stem}.safetensors", tensors.pieces)
        write_durably(target / f"{stem}.json", [seal({"file": file, "tensors": part})])
        if self.rank == 0:
            files = [write_durably(target / name, [data]) for name, data in attachments.items()]
            parts = self._await_parts(target)
            manifest = {
                "format": FORMAT,
                "step": step,
                "identity": self.identity,
                "world_size": self.world_size,
                "files": files + [record for part in parts for record in part["files"]],
                "tensors": _merge_tensors(parts),
                "scalars": scalars,
                "attachments": sorted(attachments),
            }
            write_durably(target / MANIFEST, [seal(manifest)])
            sync_folder(self.folder)
            self._keeper.prune(target)

    def _await_parts(self, target: Path) -> list[dict[str, Any]]:
        """What each rank has written, once all have: files with their records, and tensors."""
        deadline = time.monotonic() + self.peer_timeout_seconds
        parts = []
        for rank in range(self.world_size):
            path = target / f"rank-{rank:03d}-of-{self.world_size:03d}.json"
            while not path.exists():
                if not threading.main_thread().is_alive():
                    deadline = min(deadline, time.monotonic() + LINGER_SECONDS)
                if time.monotonic() > deadline:
                    raise RanksLostError(f"rank {rank} did not write its part of {target.name}")
                time.sleep(POLL_SECONDS)
            data = path.read_bytes()
            part = unseal(data, f"{target.name}/{path.name}")
            own = {"path": path.name, "bytes": len(data), "sha256": sha256_hex(data)}
            parts.append({"files": [part["file"], own], "tensors": part["tensors"]})
        return parts


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


def _describe(shard: StateShard) -> dict[str, Any]:
    num_rows = shard.tensor.shape[0] if shard.full_shape else 0
    return {
        "name": shard.name,
        "key": key_of(shard),
        "shape": list(shard.full_shape),
        "start": shard.start,
        "stop": shard.start + num_rows,
    }


def _merge_tensors(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Every tensor with the slices that make it up, in order; CheckpointError if one has a gap."""
    merged: dict[str, Any] = {}
    for part in parts:
        for tensor in part["tensors"]:
            entry = merged.setdefault(tensor["name"], {"shape": tensor["shape"], "slices": []})
            piece = {key: tensor[key] for key in ("key", "start", "stop")}
            entry["slices"].append({**piece, "file": part["files"][0]["path"]})
    for name, entry in merged.items():
        entry["slices"].sort(key=lambda piece: (piece["start"], piece["stop"]))
        _check_whole(name, entry["shape"], entry["slices"])
    return merged


def _check_whole(name: str, shape: list[int], slices: list[dict[str, Any]]) -> None:
    num_rows = shape[0] if shape else 0
    ends = [0, *(piece["stop"] for piece in slices)]
    starts = [*(piece["start"] for piece in slices), num_rows]
    if ends != starts or (not shape and len(slices) != 1):
        ranges = ", ".join(f"[{piece['start']}:{piece['stop']}]" for piece in slices)
        raise CheckpointError(
            f"the ranks saved rows {ranges} of {name}, which has {num_rows}; each must be saved "
            "once, so this step was not kept"
        )
