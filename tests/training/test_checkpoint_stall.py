import statistics
import time
from pathlib import Path

import pytest
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
from nanochat_core.training.loop import StepMetrics, Trainer
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import MicroBatch

# The demo's model: 1.2 million parameters, 12.6 MB with their moments.
CONFIG = ModelConfig(
    sequence_len=128, vocab_size=2048, n_layer=2, n_head=1, n_kv_head=1, n_embd=128
)
RANKS = Ranks.single("cpu")
NUM_SAVES = 25


class TimedHook:
    """Times another hook; it counts what training waits for, whatever that is."""

    def __init__(self, hook: CheckpointHook) -> None:
        self.hook = hook
        self.seconds: list[float] = []

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        started = time.perf_counter()
        self.hook.after_step(state, metrics)
        self.seconds.append(time.perf_counter() - started)

    def at_end(self, state: TrainState) -> None:
        self.hook.at_end(state)


def demo_state() -> TrainState:
    model = GPT(CONFIG, torch.float32)
    model.init_weights(1)
    groups = build_groups(
        model.named_parameters(),
        OptimizerRecipe(),
        batch_lr_scale=1.0,
        width_lr_scale=1.0,
        muon_weight_decay=0.1,
    )
    return TrainState(model, MuonAdamW(groups, RANKS, compute_dtype=torch.float32))


def median_stall(folder: Path) -> float:
    """Train with a checkpoint after every second step; the first one allocates and is left out."""
    state = demo_state()
    writer = CheckpointWriter(folder / "checkpoints", identity="x", token="0000000a")
    metrics_path = folder / "metrics.jsonl"
    metrics_path.write_bytes(b'{"step": 1, "train/loss": 5.5}\n' * 1000)
    hook = TimedHook(CheckpointHook(writer, RANKS, 2, metrics_path))
    tokens = torch.randint(2048, (8, 129), generator=torch.Generator().manual_seed(1))
    Trainer(
        num_steps=2 * NUM_SAVES,
        schedule=ScheduleRecipe(),
        loss_function=loss_function(state.model, compiled=False),
        batches=lambda step: [MicroBatch(tokens[:, :-1], tokens[:, 1:], 1 / (8 * 128))],
        ranks=RANKS,
        stop_requested=lambda: False,
        hooks=[hook],
    ).train(state)
    assert len(writer.stall_seconds) == NUM_SAVES
    return statistics.median(hook.seconds[3::2])


@pytest.mark.long
def test_a_checkpoint_of_the_demo_keeps_training_waiting_for_5_ms_or_less(tmp_path: Path) -> None:
    medians = []
    # Other work on the machine only ever adds to it.
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        medians.append(median_stall(folder))
        if medians[-1] <= 0.005:
            return
    pytest.fail(f"training waited for {[f'{1e3 * m:.1f} ms' for m in medians]}")
