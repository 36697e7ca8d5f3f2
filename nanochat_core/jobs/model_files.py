"""What a published model has beside its weights: moments, and what else training goes on from.

Whole, un-padded tensors by name: the same files at any number of ranks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.config.job import Role
from nanochat_core.errors import CheckpointError, DamagedFileError
from nanochat_core.inference.loading import WEIGHTS_FILE
from nanochat_core.training.checkpoint_buffers import DTYPE_NAMES
from nanochat_core.training.checkpoint_files import Checkpoint
from nanochat_core.training.state import MOMENTS, WEIGHTS, TrainState
from nanochat_core.training.trunk import STATE_FILE

OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_SCALARS = "optimizer.json"


def publish_optimizer(checkpoint: Checkpoint, folder: Path) -> dict[str, Role]:
    """Write the moments."""
    names = [name for name in checkpoint.names if name.startswith(MOMENTS)]
    tensors = {name.removeprefix(MOMENTS): checkpoint.read(name) for name in names}
    save_file(tensors, str(folder / OPTIMIZER_TENSORS))
    scalars = {"optimizer_steps": checkpoint.scalars["optimizer_steps"]}
    (folder / OPTIMIZER_SCALARS).write_bytes(seal(scalars))
    return {OPTIMIZER_TENSORS: "result", OPTIMIZER_SCALARS: "result"}


def publish_training_state(
    checkpoint: Checkpoint, folder: Path, settings: Mapping[str, Any]
) -> dict[str, Role]:
    """Write what a run that goes on from the published model needs beside weights and moments.

    A record: it has times in it. `settings` are those that these steps ran with.
    """
    body = {
        "step": checkpoint.step,
        "scalars": checkpoint.scalars,
        "settings": dict(settings),
    }
    (folder / STATE_FILE).write_bytes(seal(body))
    return {STATE_FILE: "record"}


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


class PublishedState:
    """A published model as a state to go on from, with the same `read` as a checkpoint's.

    Raises CheckpointError when the folder has no such state, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            body = unseal((folder / STATE_FILE).read_bytes(), STATE_FILE)
        except (OSError, DamagedFileError) as error:
            raise CheckpointError(f"{folder} has no state to go on from: {error}") from error
        self.step: int = body["step"]
        self.scalars: dict[str, Any] = body["scalars"]
        self.settings: dict[str, Any] = body.get("settings", {})
        self._optimizer = PublishedOptimizer(folder)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """A tensor, or of a moment the rows [start, stop), on the CPU."""
        if name.startswith(MOMENTS):
            assert start is not None, "moments are read by rows"
            assert stop is not None, "moments are read by rows"
            return self._optimizer.read(name.removeprefix(MOMENTS), start, stop)
        with safe_open(str(self.folder / WEIGHTS_FILE), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name.removeprefix(WEIGHTS))
            return tensor

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless these steps ran with all of the settings, bit for bit."""
        for name, wanted in settings.items():
            given = self.settings.get(name, "unknown")
            if given != wanted:
                raise CheckpointError(f"it ran with {name}={given}, this run has {name}={wanted}")

    def check(self, state: TrainState) -> None:
        """Raise CheckpointError unless all of this can be taken over: nothing is half restored."""
        weights = {
            name: (tuple(tensor.shape), DTYPE_NAMES[tensor.dtype])
            for name, tensor in state.model.state_dict().items()
        }
        shapes = state.optimizer.state_names_and_shapes()
        moments = {name: (shape, DTYPE_NAMES[torch.float32]) for name, shape in shapes.items()}
        _check_tensors(self.folder / WEIGHTS_FILE, weights)
        _check_tensors(self.folder / OPTIMIZER_TENSORS, moments)


_Tensors = dict[str, tuple[tuple[int, ...], str]]


def _check_tensors(path: Path, wanted: _Tensors) -> None:
    try:
        with safe_open(str(path), framework="pt") as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            given = {name: (tuple(v.get_shape()), v.get_dtype()) for name, v in views.items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    wrong = sorted(name for name, kind in wanted.items() if given.get(name) != kind)
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{path} has {given.get(name, 'nothing')} as {name}, this model has {wanted[name]}"
        )
