"""Everything that a resume needs, as one object."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from nanochat_core.errors import CheckpointError
from nanochat_core.model.gpt import GPT
from nanochat_core.optim.groups import StateShard
from nanochat_core.optim.muon_adamw import MuonAdamW
from nanochat_core.training.checkpoint_files import Checkpoint
from nanochat_core.training.checkpoints import spread_over_ranks
from nanochat_core.training.loss_scale import LossScale

WEIGHTS = "model."
MOMENTS = "optimizer."
LOSS_EMA_BETA = 0.9


@dataclass
class TrainState:
    """Weights, optimizer, step and running values; `step` also is the position in the data."""

    model: GPT
    optimizer: MuonAdamW
    step: int = 0
    loss_ema: float = 0.0
    training_seconds: float = 0.0
    loss_scale: LossScale = field(default_factory=LossScale)

    @property
    def smooth_loss(self) -> float:
        """Exponential mean of the training loss in nats per token, without start-up bias."""
        return self.loss_ema / (1 - LOSS_EMA_BETA ** max(self.step, 1))

    def observe_loss(self, loss_nats: float) -> None:
        """Take a step's loss into the running mean; one that float16 overflowed says nothing."""
        if self.loss_scale.enabled and not math.isfinite(loss_nats):
            return
        self.loss_ema = LOSS_EMA_BETA * self.loss_ema + (1 - LOSS_EMA_BETA) * loss_nats

    def weights_are_finite(self) -> bool:
        """Whether no weight is NaN or infinite; waits for the device."""
        checks = [torch.isfinite(weight).all() for weight in self.model.parameters()]
        return bool(torch.stack(checks).all())

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
            "loss_ema": self.loss_ema,
            "training_seconds": self.training_seconds,
            "loss_scale": self.loss_scale.scale,
            "loss_scale_good_steps": self.loss_scale.good_steps,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint in place, without a change of any dtype."""
        for name, tensor in self.model.state_dict().items():
            copy_in_place(tensor, checkpoint.read(WEIGHTS + name), name)
        self.optimizer.load_state(
            lambda name, start, stop: checkpoint.read(MOMENTS + name, start, stop)
        )
        scalars = checkpoint.scalars
        self.optimizer.steps = scalars["optimizer_steps"]
        self.loss_ema = scalars["loss_ema"]
        self.training_seconds = scalars["training_seconds"]
        self.loss_scale.scale = scalars["loss_scale"]
        self.loss_scale.good_steps = scalars["loss_scale_good_steps"]
        self.step = checkpoint.step


def copy_in_place(target: torch.Tensor, source: torch.Tensor, name: str) -> None:
    """Copy a saved tensor over a live one; a CheckpointError if shape or dtype differ."""
    if target.shape != source.shape or target.dtype != source.dtype:
        raise CheckpointError(
            f"{name} was saved as {tuple(source.shape)} {source.dtype}, this model has "
            f"{tuple(target.shape)} {target.dtype}"
        )
    with torch.no_grad():
        target.copy_(source)
