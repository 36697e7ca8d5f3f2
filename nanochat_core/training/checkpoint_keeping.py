"""Which checkpoints stay: the newest ones and the best one."""

import logging
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat_core.artifacts.sealed import seal
from nanochat_core.errors import CheckpointError
from nanochat_core.training.checkpoint_files import (
    BEST,
    FORMAT,
    MANIFEST,
    Best,
    Checkpoint,
    best_checkpoint,
    checkpoint_folders,
    parse_step_folder,
    read_best,
    read_manifest,
)
from nanochat_core.training.durable_files import write_durably

log = logging.getLogger(__name__)


@dataclass
class Keeper:
    """Rank 0's care for a folder of checkpoints: records the best, removes what is not kept.

    `token` is that of this process, `resumed_from` the step it went on from
    (-1: none).
    Whatever operation a crash comes after, the newest whole checkpoint is there and whole.
    """

    folder: Path
    identity: str
    token: str
    keep: int
    resumed_from: int | None = None
    _best: Best | None = None
    _has_looked: bool = False

    def mark_best(self, step: int, value: float) -> None:
        """Record the checkpoint of `step` if `value` is lower than the best one's so far."""
        best = self._current_best()
        if not math.isfinite(value) or (best is not None and value >= best.value):
            return
        folder = self._folder_of(step)
        if folder is None:
            log.info("step %d is the best so far, but has no checkpoint to keep", step)
            return
        best = Best(step, value, folder.name)
        body = {"format": FORMAT, "identity": self.identity, **asdict(best)}
        write_durably(self.folder / BEST, [seal(body)])
        self._best = best

    def clear(self) -> None:
        """Remove what dead processes left unfinished, to make room before anything is written."""
        for _, path in checkpoint_folders(self.folder):
            is_own = parse_step_folder(path)[1] == self.token
            if not is_own and not (path / MANIFEST).exists():
                shutil.rmtree(path, ignore_errors=True)

    def prune(self, newest: Path) -> None:
        """Remove all but `newest`, just written, the `keep - 1` whole ones before it and the best.

        Each folder loses its manifest first, so that no crash leaves half a checkpoint that looks
        whole.
        """
        step, _ = parse_step_folder(newest)
        best = self._current_best()
        num_kept = 1
        for other_step, path in checkpoint_folders(self.folder):
            token = parse_step_folder(path)[1]
            # Another rank of this process group may be a step ahead.
            if path == newest or (other_step > step and token == self.token):
                continue
            if num_kept < self.keep and self._can_be_resumed(path):
                num_kept += 1
            elif best is None or path.name != best.folder:
                (path / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)

    def _can_be_resumed(self, path: Path) -> bool:
        """Whether a folder counts; one that this process was not able to resume does not.

        All that another process saved later than that is damaged, or training would have gone on
        from there. The bytes of tensors are not looked at: that would take too long.
        """
        step, token = parse_step_folder(path)
        if token == self.token:
            return (path / MANIFEST).exists()
        if self.resumed_from is None or step > self.resumed_from:
            return False
        try:
            read_manifest(path, self.identity)
        except CheckpointError:
            return False
        return True

    def _current_best(self) -> Best | None:
        """The best so far; when a process first asks, the one on disk if every byte of it is right.

        A damaged one would stay the best for ever, as no later one need be better.
        """
        if not self._has_looked:
            self._has_looked = True
            if best_checkpoint(self.folder, self.identity) is not None:
                self._best = read_best(self.folder, self.identity)
        return self._best

    def _folder_of(self, step: int) -> Path | None:
        """The whole checkpoint of a step, of this process or of the one before."""
        for other_step, path in checkpoint_folders(self.folder):
            if other_step != step:
                continue
            if parse_step_folder(path)[1] == self.token:
                if (path / MANIFEST).exists():
                    return path
                continue
            try:
                return Checkpoint.open(path, self.identity).folder
            except CheckpointError as error:
                log.warning("step %d cannot be the best: %s", step, error)
        return None
