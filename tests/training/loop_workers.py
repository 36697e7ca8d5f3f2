"""What each of two ranks does in the tests of the loop over ranks; results land in a file."""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nanochat_core.distributed.ranks import init_ranks
from nanochat_core.errors import JobStoppedError
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.optim.muon_adamw import MuonAdamW
from nanochat_core.optim.recipe import OptimizerRecipe, ScheduleRecipe
from nanochat_core.training.compiling import loss_function
from nanochat_core.training.groups import build_groups
from nanochat_core.training.loop import StepMetrics, Trainer
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import MicroBatch

NUM_STEPS, SPOILED_STEP, SAVE_WISH, STOP_WISH = 30, 3, 4, 8
CONFIG = ModelConfig(
    sequence_len=16, vocab_size=64, n_layer=1, n_head=1, n_kv_head=1, n_embd=32, window_pattern="L"
)


class Saves(list[int]):
    """A hook that keeps the steps at which all ranks had agreed to save."""

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        if metrics.save:
            self.append(state.step)

    def at_end(self, state: TrainState) -> None:
        pass


def main(rank: int, port: int, folder: Path, run_ahead: bool) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    ranks = init_ranks("cpu")
    model = GPT(CONFIG)
    model.init_weights(1)
    groups = build_groups(
        model.named_parameters(),
        OptimizerRecipe(),
        batch_lr_scale=0.1,
        width_lr_scale=1.0,
        muon_weight_decay=0.1,
    )
    state = TrainState(model, MuonAdamW(groups, ranks))

    def batches(step: int) -> Sequence[MicroBatch]:
        generator = torch.Generator().manual_seed(10 * step + rank)
        tokens = torch.randint(64, (4, 17), generator=generator)
        batch = MicroBatch(tokens[:, :-1], tokens[:, 1:], 1 / (2 * 4 * 16))
        is_spoiled = step == SPOILED_STEP and rank == 1
        return [replace(batch, loss_weight=float("nan")) if is_spoiled else batch]

    saves = Saves()
    with contextlib.suppress(JobStoppedError):
        Trainer(
            num_steps=NUM_STEPS,
            schedule=ScheduleRecipe(),
            loss_function=loss_function(model, compiled=False),
            batches=batches,
            ranks=ranks,
            stop_requested=lambda: rank == 1 and state.step >= STOP_WISH,
            hooks=[saves],
            save_requested=lambda: rank == 0 and state.step == SAVE_WISH,
            run_ahead=run_ahead,
        ).train(state)
    weights = [float(p.detach().double().sum()) for p in model.parameters()]
    result = {"step": state.step, "saves": saves, "weights": weights, "good": state.watch.count}
    (folder / f"{rank}.json").write_text(json.dumps(result))
    ranks.close()
