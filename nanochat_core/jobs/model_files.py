"""The optimizer's moments as files of a published model: whole tensors by name."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.config.job import Role
from nanochat_core.errors import CheckpointError
from nanochat_core.training.checkpoint_files import Checkpoint
from nanochat_core.training.state import MOMENTS

OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_SCALARS = "optimizer.json"


def publish_optimizer(checkpoint: Checkpoint, folder: Path) -> dict[str, Role]:
    """Write the moments as whole, un-padded tensors by name: the same files at any world size."""
    names = [name for name in checkpoint.names if name.startswith(MOMENTS)]
    tensors = {name.removeprefix(MOMENTS): checkpoint.read(name) for name in names}
    save_file(tensors, str(folder / OPTIMIZER_TENSORS))
    scalars = {"optimizer_steps": checkpoint.scalars["optimizer_steps"]}
    (folder / OPTIMIZER_SCALARS).write_bytes(seal(scalars))
    return {OPTIMIZER_TENSORS: "result", OPTIMIZER_SCALARS: "result"}


class PublishedOptimizer:
    """The moments of a published model, for a warm start."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / OPTIMIZER_TENSORS
        scalars_path = folder / OPTIMIZER_SCALARS
        if not self.path.exists() or not scalars_path.exists():
            raise CheckpointError(
                f"{folder} has no {OPTIMIZER_TENSORS} and {OPTIMIZER_SCALARS}; fine-tuning starts "
                "from the moments of pretraining, so give it a base model that has them"
            )
        scalars: dict[str, Any] = unseal(scalars_path.read_bytes(), OPTIMIZER_SCALARS)
        self.steps: int = scalars["optimizer_steps"]

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a state tensor, on the CPU."""
        with safe_open(str(self.path), framework="pt") as file:
            if name not in file.keys():  # noqa: SIM118 - a file handle, not a mapping
                raise CheckpointError(f"{self.path.name} has no tensor named {name}")
            view = file.get_slice(name)
            rows: torch.Tensor = view[start:stop] if view.get_shape() else file.get_tensor(name)
            return rows
