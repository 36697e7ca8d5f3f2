"""Supervised fine-tuning as a torchrun job: a base model and conversations in, a chat model out."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_core.config.job import JobSpec, Role, StageOutput
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.data.conversation_rows import ConversationRows
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.inference.loading import load_pair, save_model
from nanochat_core.jobs.common import StopRequest, run_job_main
from nanochat_core.jobs.device_rows import DeviceRows, rows_of, settle_training
from nanochat_core.jobs.model_files import PublishedOptimizer
from nanochat_core.jobs.pretrain import copy_records
from nanochat_core.jobs.sft_conversations import Taught, mixture_of, render_rows
from nanochat_core.jobs.sft_validation import held_out_loss
from nanochat_core.jobs.training_run import (
    RunPlan,
    TrainingRun,
    build_state,
    provenance,
    to_device,
)
from nanochat_core.model.counts import flops_per_token, parameter_counts
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.dial import TrainingPlan, accumulation_steps, check_device_batch
from nanochat_core.training.groups import build_groups
from nanochat_core.training.precision import resolve_compute_dtype
from nanochat_core.training.recipes import PretrainRecipe, SftRecipe
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import MicroBatch
from nanochat_core.training.warm_start import sft_optimizer

PREVIEW_FILE = "conversations.jsonl"


@dataclass(frozen=True)
class Base:
    """The base model's weights, numbers and moments."""

    model: GPT
    tokenizer: Tokenizer
    recipe: PretrainRecipe
    plan: TrainingPlan
    optimizer: PublishedOptimizer


def main(spec: JobSpec, ranks: Ranks, stop: StopRequest) -> None:
    """Fine-tune, saving as it goes, then write the files of the artifact."""
    recipe = SftRecipe.model_validate(spec.recipe)
    device_rows = DeviceRows(spec, ranks)
    with device_rows.told():
        base = load_base(spec, recipe, ranks)
        taught = render_rows(
            mixture_of(spec, recipe.mixture, model_facts(base, recipe)),
            base.tokenizer,
            ranks,
            sequence_len=base.model.config.sequence_len,
            buffer=recipe.packing_buffer,
        )
        rows = taught.rows
        plan = run_plan(recipe, base.plan, rows.num_rows)
        check_device_batch(plan.rows_per_step, spec.execution.device_batch_size, ranks.world_size)
        run = TrainingRun(spec, ranks, plan, warm_state(base, recipe, spec, ranks))
        settle_training(
            device_rows, run, plan.rows_per_step, lambda size: trial_batch(rows, size, ranks)
        )
        looks = held_out_loss(
            *(run, recipe.mixture, model_facts(base, recipe), base.tokenizer),
            buffer=recipe.packing_buffer,
        )
        run.train(open_batches(run.spec, plan, rows, ranks), stop, more_hooks=looks)
    if ranks.rank == 0:
        publish(run, recipe, base, taught)


def load_base(spec: JobSpec, recipe: SftRecipe, ranks: Ranks) -> Base:
    """Load the base model, refusing one that was trained with another tokenizer."""
    folder = spec.input("pretrain")
    dtype = resolve_compute_dtype(recipe.compute_dtype, ranks.device)
    model, config, tokenizer = load_pair(folder, spec.input("tokenizer"), ranks.device, dtype)
    return Base(
        model=model,
        tokenizer=tokenizer,
        recipe=PretrainRecipe.model_validate(config["training"]),
        plan=TrainingPlan.model_validate(config["plan"]),
        optimizer=PublishedOptimizer(folder),
    )


def model_facts(base: Base, recipe: SftRecipe) -> ModelFacts:
    """What the model will say about itself."""
    config = base.model.config
    return ModelFacts(
        name=recipe.mixture.name,
        depth=config.n_layer,
        num_parameters=parameter_counts(config).total,
        n_embd=config.n_embd,
        n_head=config.n_head,
        vocab_size=config.vocab_size,
        sequence_len=config.sequence_len,
        data=recipe.mixture.data,
    )


def run_plan(recipe: SftRecipe, base: TrainingPlan, num_rows: int) -> RunPlan:
    """Steps from epochs (or as given); the batch of the base model."""
    if recipe.num_iterations != "auto":
        steps = int(recipe.num_iterations)
    else:
        epochs = 1.0 if recipe.epochs == "auto" else float(recipe.epochs)
        steps = math.ceil(epochs * num_rows / base.rows_per_step)
    return RunPlan(
        num_steps=max(steps, 1),
        rows_per_step=base.rows_per_step,
        tokens_per_step=base.tokens_per_step,
        flops_per_token=flops_per_token(base.model),
        schedule=recipe.schedule,
    )


def open_batches(
    spec: JobSpec, plan: RunPlan, rows: ConversationRows, ranks: Ranks
) -> Callable[[int], list[MicroBatch]]:
    """The micro-batches of this rank; the loss is the mean over the step's supervised tokens."""
    size = rows_of(spec)
    passes = accumulation_steps(plan.rows_per_step, size, ranks.world_size)

    def batches(step: int) -> list[MicroBatch]:
        first = step * plan.rows_per_step
        weight = 1.0 / rows.targets_in(first, plan.rows_per_step)
        first += ranks.rank * passes * size
        return [_micro_batch(rows, first + i * size, size, weight, ranks) for i in range(passes)]

    return batches


def trial_batch(rows: ConversationRows, size: int, ranks: Ranks) -> MicroBatch:
    """The first rows, to see how much memory so many of them take."""
    return _micro_batch(rows, 0, size, 1.0, ranks)


def _micro_batch(
    rows: ConversationRows, first_row: int, size: int, weight: float, ranks: Ranks
) -> MicroBatch:
    inputs, targets = rows.read(first_row, size)
    return MicroBatch(to_device(inputs, ranks.device), to_device(targets, ranks.device), weight)


def warm_state(base: Base, recipe: SftRecipe, spec: JobSpec, ranks: Ranks) -> TrainState:
    """The base model's weights with its moments and step counters."""
    optimizer_recipe = sft_optimizer(base.recipe.optimizer, recipe)
    groups = build_groups(
        base.model.named_parameters(),
        optimizer_recipe,
        batch_lr_scale=1.0,
        width_lr_scale=base.plan.width_lr_scale,
        muon_weight_decay=0.0,
    )
    state = build_state(base.model, groups, ranks, spec)
    state.optimizer.load_state(base.optimizer.read)
    state.optimizer.steps = base.optimizer.steps
    return state


def publish(run: TrainingRun, recipe: SftRecipe, base: Base, taught: Taught) -> None:
    """Write weights, config and records, and `outputs.json` last."""
    output = Path(run.spec.output_folder)
    base_config: dict[str, Any] = json.loads(
        (run.spec.input("pretrain") / "config.json").read_text(encoding="utf-8")
    )
    config = {
        **base_config,
        "sft": recipe.model_dump(mode="json"),
        "facts": model_facts(base, recipe).model_dump(mode="json"),
    }
    files: dict[str, Role] = dict.fromkeys(save_model(run.state.model, output, config), "result")
    files |= copy_records(run.work_folder, output)
    lines = [conversation.model_dump_json() for conversation in taught.first()]
    (output / PREVIEW_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    files[PREVIEW_FILE] = "record"
    StageOutput(
        files=files,
        metrics={
            "train/loss": run.state.smooth_loss,
            "steps": run.plan.num_steps,
            **taught.metrics(),
            "total_training_time": run.state.training_seconds,
        },
        provenance=provenance(run),
    ).save(output)


if __name__ == "__main__":
    run_job_main(main)
