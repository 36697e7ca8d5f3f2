"""Everything that a resume needs, as one object."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from nanochat_core.errors import CheckpointError
from nanochat_core.model.gpt import GPT
from nanochat_core.optim.groups import StateShard
from nanochat_core.optim.muon_adamw import MuonAdamW
from nanochat_core.training.checkpoints import spread_over_ranks
from nanochat_core.training.loss_scale import LossScale
from nanochat_core.training.loss_watch import LossWatch

WEIGHTS = "model."
MOMENTS = "optimizer."


class SavedState(Protocol):
    """A state to go on from, as a checkpoint or a published model holds it."""

    step: int
    scalars: dict[str, Any]

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """A tensor, or its rows [start, stop), on the CPU; names begin as in `shards`."""


@dataclass
class TrainState:
    """Weights, optimizer, step and running values; `step` also is the position in the data.

    `started_from_step` is where a shared beginning ended that this run did not train itself.
    `is_whole` is False while the optimizer changes the weights: what fails then, as memory that
    runs out, leaves nothing that is worth saving.
    """

    model: GPT
    optimizer: MuonAdamW
    step: int = 0
    training_seconds: float = 0.0
    started_from_step: int = 0
    loss_scale: LossScale = field(default_factory=LossScale)
    watch: LossWatch = field(default_factory=LossWatch)
    is_whole: bool = True

    def __post_init__(self) -> None:
        self.watch.scales_loss = self.loss_scale.enabled

    @property
    def smooth_loss(self) -> float:
        """Running mean of the training loss in nats per token, as far as it was read."""
        return self.watch.smooth

    def weights_are_finite(self) -> bool:
        """Whether no weight is NaN or infinite; waits for the device."""
        weights = [weight.detach() for weight in self.model.parameters()]
        # A finite sum has finite terms, and takes a tenth of the time; other sums may be too large.
        sums = torch.stack([weight.sum(dtype=torch.float32) for weight in weights])
        if bool(sums.isfinite().all()):
            return True
        return bool(torch.stack([weight.isfinite().all() for weight in weights]).all())

    def shards(self, rank: int, world_size: int) -> list[StateShard]:
        """The tensors, or rows of tensors, that this rank saves."""
        weights = {WEIGHTS + name: tensor for name, tensor in self.model.state_dict().items()}
        moments = [
            StateShard(MOMENTS + shard.name, shard.full_shape, shard.start, shard.tensor)
            for shard in self.optimizer.state_shards()
        ]
        return spread_over_ranks(weights, rank, world_size) + moments

    def scalars(self) -> dict[str, Any]:
        """Everything that is not a tensor."""
        return {
            "optimizer_steps": self.optimizer.steps,
            "loss_watch": self.watch.scalars(),
            "training_seconds": self.training_seconds,
            "loss_scale": self.loss_scale.scale,
            "loss_scale_good_steps": self.loss_scale.good_steps,
            "started_from_step": self.started_from_step,
        }

    def restore(self, saved: SavedState) -> None:
        """Take over what was saved in place, without a change of any dtype."""
        for name, tensor in self.model.state_dict().items():
            copy_in_place(tensor, saved.read(WEIGHTS + name), name)
        self.optimizer.load_state(lambda name, start, stop: saved.read(MOMENTS + name, start, stop))
        scalars = saved.scalars
        self.optimizer.steps = scalars["optimizer_steps"]
        self.watch.restore(scalars["loss_watch"])
        self.training_seconds = scalars["training_seconds"]
        self.loss_scale.scale = scalars["loss_scale"]
        self.loss_scale.good_steps = scalars["loss_scale_good_steps"]
        # Checkpoints of an older version have none.
        self.started_from_step = scalars.get("started_from_step", 0)
        self.step = saved.step


def copy_in_place(target: torch.Tensor, source: torch.Tensor, name: str) -> None:
    """Copy a saved tensor over a live one; a CheckpointError if shape or dtype differ."""
    if target.shape != source.shape or target.dtype != source.dtype:
        raise CheckpointError(
            f"{name} was saved as {tuple(source.shape)} {source.dtype}, this model has "
            f"{tuple(target.shape)} {target.dtype}"
        )
    with torch.no_grad():
        target.copy_(source)
