"""A small model, its batches and the loop around them, for the tests of the loop and its hooks."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.optim.muon_adamw import MuonAdamW
from nanochat_core.optim.recipe import OptimizerRecipe, ScheduleRecipe
from nanochat_core.training.checkpoints import CheckpointWriter
from nanochat_core.training.compiling import loss_function
from nanochat_core.training.groups import build_groups
from nanochat_core.training.hooks import CheckpointHook
from nanochat_core.training.loop import Hook, Trainer
from nanochat_core.training.loss_scale import LossScale
from nanochat_core.training.reading import NO_VOTES, Reading
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import MicroBatch

CONFIG = ModelConfig(
    sequence_len=16, vocab_size=64, n_layer=2, n_head=1, n_kv_head=1, n_embd=32, window_pattern="L"
)
RANKS = Ranks.single("cpu")
SCHEDULE = ScheduleRecipe(warmup_steps=2, momentum_ramp_steps=4)


def new_state(
    dtype: torch.dtype = torch.float32, lr_scale: float = 0.1, ranks: Ranks = RANKS
) -> TrainState:
    model = GPT(CONFIG, dtype)
    model.init_weights(1)
    model.to(ranks.device)
    groups = build_groups(
        model.named_parameters(),
        OptimizerRecipe(),
        batch_lr_scale=lr_scale,
        width_lr_scale=1.0,
        muon_weight_decay=0.1,
    )
    scale = LossScale.for_float16() if dtype == torch.float16 else LossScale()
    optimizer = MuonAdamW(groups, ranks, compute_dtype=dtype)
    return TrainState(model, optimizer, loss_scale=scale)


def batches(step: int) -> Sequence[MicroBatch]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(64, (2, 4, 17), generator=generator)
    return [MicroBatch(t[:, :-1], t[:, 1:], 1 / (2 * 4 * 16)) for t in tokens]


def train(
    state: TrainState,
    steps: int,
    hooks: Sequence[Hook] = (),
    stop_after: int = -1,
    *,
    run_ahead: bool = False,
    batches: Callable[[int], Sequence[MicroBatch]] = batches,
) -> None:
    Trainer(
        num_steps=steps,
        schedule=SCHEDULE,
        loss_function=loss_function(state.model, compiled=False),
        batches=batches,
        ranks=RANKS,
        stop_requested=lambda: state.step == stop_after,
        hooks=hooks,
        run_ahead=run_ahead,
    ).train(state)


def everything(state: TrainState) -> dict[str, torch.Tensor]:
    return {shard.name: shard.tensor.clone() for shard in state.shards(0, 1)}


def checkpoint_hook(folder: Path, every: int = 1000, token: str = "0000000a") -> CheckpointHook:
    writer = CheckpointWriter(folder, identity="x", token=token)
    return CheckpointHook(writer, RANKS, every, None)


def reading(loss: float) -> Reading:
    return Reading.of_step(torch.tensor(loss), [torch.ones(3)], NO_VOTES, RANKS)
