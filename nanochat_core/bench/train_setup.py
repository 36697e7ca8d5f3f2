"""From what is asked for to a model that trains: the same parts as in the job, on made-up text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from nanochat_core.bench.markov import IntArray, MarkovText
from nanochat_core.bench.train_rows import choose_rows
from nanochat_core.config.base import Config
from nanochat_core.config.execution import Execution
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError
from nanochat_core.model.backends.choosing import choose_backend
from nanochat_core.model.gpt import GPT
from nanochat_core.optim.muon_adamw import MuonAdamW
from nanochat_core.optim.recipe import MuonGroup, OptimizerRecipe, ScheduleRecipe
from nanochat_core.training.compiling import loss_function
from nanochat_core.training.dial import (
    TrainingPlan,
    accumulation_steps,
    check_device_batch,
    plan_training,
)
from nanochat_core.training.groups import build_groups
from nanochat_core.training.loop import Hook, Trainer
from nanochat_core.training.loss_scale import LossScale
from nanochat_core.training.precision import resolve_compute_dtype
from nanochat_core.training.recipes import DataOrderRecipe, PretrainRecipe
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import LossFunction, MicroBatch

DEMO = PretrainRecipe(
    depth=2,
    sequence_len=256,
    tokens_per_step=2_048,
    num_iterations=1_500,
    scale_weight_decay=False,
    optimizer=OptimizerRecipe(
        matrices=MuonGroup(weight_decay=0.0), scalar_lr_scale=0.1, scale_lr_with_batch=False
    ),
    schedule=ScheduleRecipe(warmup_steps=10, warmdown_fraction=0.6),
    data=DataOrderRecipe(block_shards=1, max_epochs=8.0),
)
"""What the preset `demo` trains; a test compares the two."""
DEMO_VOCAB_SIZE = 2048
VOCAB_SIZE = 32768
DISTINCT_STEPS = 4
"""Steps whose rows are made beforehand and lie on the device, so that reading costs nothing."""


class Setup(Config):
    """One way to train one model."""

    recipe: PretrainRecipe
    execution: Execution
    vocab_size: int

    def changed(
        self, recipe: dict[str, object] | None = None, execution: dict[str, object] | None = None
    ) -> "Setup":
        """The same with other values of some fields; ConfigError for what they cannot be."""
        try:
            return Setup(
                recipe=PretrainRecipe(**{**self.recipe.model_dump(), **(recipe or {})}),
                execution=Execution(**{**self.execution.model_dump(), **(execution or {})}),
                vocab_size=self.vocab_size,
            )
        except ValidationError as error:
            found = error.errors(include_url=False)
            raise ConfigError(
                "; ".join(f"{e['loc'][0]}={e['input']!r}: {e['msg']}" for e in found)
            ) from error


@dataclass(frozen=True)
class Parts:
    """A model that is ready to train."""

    setup: Setup
    plan: TrainingPlan
    ranks: Ranks
    state: TrainState
    loss: LossFunction
    attention: str
    device_batch_size: int
    passes: int
    """Micro-batches of one rank in a step."""

    @property
    def dtype(self) -> torch.dtype:
        """What activations are computed in."""
        return self.state.model.compute_dtype

    def train(
        self,
        batches: Callable[[int], Sequence[MicroBatch]],
        num_steps: int,
        hooks: Sequence[Hook] = (),
    ) -> None:
        """Run the training loop for some more steps; the schedules end with the last of them."""
        trainer = Trainer(
            num_steps=self.state.step + num_steps,
            schedule=self.setup.recipe.schedule,
            loss_function=self.loss,
            batches=batches,
            ranks=self.ranks,
            stop_requested=lambda: False,
            hooks=hooks,
            run_ahead=self.ranks.device.type == "cuda",
        )
        trainer.train(self.state)


def build(setup: Setup, ranks: Ranks, cache_folder: Path | None) -> Parts:
    """Model, optimizer and loss as the pretraining job makes them."""
    recipe, execution = setup.recipe, setup.execution
    plan = plan_training(recipe, setup.vocab_size)
    check_device_batch(plan.rows_per_step, execution.device_batch_size, ranks.world_size)
    model = GPT(plan.model, resolve_compute_dtype(recipe.compute_dtype, ranks.device))
    model.init_weights(recipe.seed)
    model.to(ranks.device)
    if recipe.fp8:
        model.use_fp8_training()
    choice = choose_backend(
        execution.attention,
        ranks.device,
        model.compute_dtype,
        cache_folder,
        head_dim=plan.model.head_dim,
    )
    model.use_attention(choice.name)
    state = build_state(setup, plan, model, ranks)
    loss = loss_function(
        model,
        compiled=execution.compile,
        scope=execution.compile_scope,
        checkpoint_activations=execution.activation_checkpointing,
    )
    text = MarkovText(plan.model.vocab_size, recipe.seed)

    def one_of(rows: int) -> MicroBatch:
        """A micro-batch of so many rows, to see whether it fits."""
        inputs, targets = text.rows(0, rows, plan.model.sequence_len)
        return _micro_batch(inputs, targets, 1 / plan.tokens_per_step, ranks.device)

    rows = choose_rows(execution, ranks, plan.rows_per_step, model, loss, one_of)
    passes = accumulation_steps(plan.rows_per_step, rows, ranks.world_size)
    return Parts(setup, plan, ranks, state, loss, choice.name, rows, passes)


def build_state(setup: Setup, plan: TrainingPlan, model: GPT, ranks: Ranks) -> TrainState:
    """Optimizer and loss scale around an initialised model."""
    groups = build_groups(
        model.named_parameters(),
        setup.recipe.optimizer,
        batch_lr_scale=plan.batch_lr_scale,
        width_lr_scale=plan.width_lr_scale,
        muon_weight_decay=plan.muon_weight_decay,
    )
    optimizer = MuonAdamW(
        groups,
        ranks,
        compute_dtype=model.compute_dtype,
        reduction=setup.execution.reduction,
        compile=setup.execution.compile and ranks.device.type != "mps",
    )
    scale = LossScale.for_float16() if model.compute_dtype == torch.float16 else LossScale()
    return TrainState(model, optimizer, loss_scale=scale)


def micro_batches(parts: Parts, text: MarkovText, step: int) -> list[MicroBatch]:
    """This rank's part of a step, on its device."""
    plan, ranks, size = parts.plan, parts.ranks, parts.device_batch_size
    inputs, targets = text.rows(step, plan.rows_per_step, plan.model.sequence_len)
    first = ranks.rank * parts.passes * size
    result = []
    for start in range(first, first + parts.passes * size, size):
        rows = slice(start, start + size)
        weight = 1 / plan.tokens_per_step
        result.append(_micro_batch(inputs[rows], targets[rows], weight, ranks.device))
    return result


def _micro_batch(
    inputs: IntArray, targets: IntArray, loss_weight: float, device: torch.device
) -> MicroBatch:
    inputs_BT, targets_BT = (torch.from_numpy(np.ascontiguousarray(a)) for a in (inputs, targets))
    return MicroBatch(inputs_BT, targets_BT, loss_weight).to(device)


def prepared_batches(parts: Parts) -> Callable[[int], list[MicroBatch]]:
    """Batches that are on the device already; they repeat."""
    text = MarkovText(parts.plan.model.vocab_size, parts.setup.recipe.seed)
    made = [micro_batches(parts, text, step) for step in range(DISTINCT_STEPS)]
    return lambda step: made[step % DISTINCT_STEPS]
