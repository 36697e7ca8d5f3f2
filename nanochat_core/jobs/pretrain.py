"""Pretraining as a torchrun job: tokens and a tokenizer in, a base model out."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from nanochat_core.config.job import LOG_FILE, METRICS_FILE, JobSpec, Role, StageOutput
from nanochat_core.data.rows import TrainRows
from nanochat_core.data.validation_rows import ValidationRows
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import CheckpointError, ConfigError
from nanochat_core.evals.bits_per_byte import bits_per_byte
from nanochat_core.evals.looks import TrainingLooks
from nanochat_core.inference.loading import read_config, save_model
from nanochat_core.jobs.common import StopRequest, run_job_main
from nanochat_core.jobs.device_rows import DeviceRows, rows_of, settle_training
from nanochat_core.jobs.in_training import forward_rows, training_looks
from nanochat_core.jobs.model_files import (
    PublishedState,
    publish_optimizer,
    publish_training_state,
)
from nanochat_core.jobs.training_run import (
    RunPlan,
    TrainingRun,
    build_state,
    provenance,
    to_device,
)
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.dial import (
    TrainingPlan,
    accumulation_steps,
    check_device_batch,
    plan_training,
)
from nanochat_core.training.groups import build_groups
from nanochat_core.training.precision import resolve_compute_dtype
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import MicroBatch
from nanochat_core.training.trunk import TRUNK_INPUT, begins_with, numerics

log = logging.getLogger(__name__)


def main(spec: JobSpec, ranks: Ranks, stop: StopRequest) -> None:
    """Train, saving as it goes, then write the files of the artifact."""
    recipe = PretrainRecipe.model_validate(spec.recipe)
    tokenizer = Tokenizer.load(spec.input("tokenizer"))
    plan = plan_training(recipe, tokenizer.vocab_size)
    check_device_batch(plan.rows_per_step, spec.execution.device_batch_size, ranks.world_size)
    rows = open_rows(spec, recipe, plan)
    device_rows = DeviceRows(spec, ranks)
    with device_rows.told():
        state = fresh_state(spec, recipe, plan, ranks)
        trunk = open_trunk(spec, recipe, plan, tokenizer, ranks)
        run = TrainingRun(spec, ranks, run_plan(plan, recipe), state, trunk)
        settle_training(
            device_rows, run, plan.rows_per_step, lambda size: read_batch(rows, 0, size, 1, ranks)
        )
        batches = open_batches(run.spec, recipe, plan, ranks)
        looks = training_looks(run, tokenizer, stop)
        run.train(batches, stop, validation(run.spec, state.model, tokenizer, ranks), looks)
    if ranks.rank == 0:
        publish(run, recipe, plan, tokenizer)


def fresh_state(
    spec: JobSpec, recipe: PretrainRecipe, plan: TrainingPlan, ranks: Ranks
) -> TrainState:
    """An initialised model on its device, under a new optimizer."""
    model = GPT(plan.model, resolve_compute_dtype(recipe.compute_dtype, ranks.device))
    model.init_weights(recipe.seed)
    model.to(ranks.device)
    if recipe.fp8:
        model.use_fp8_training()
    groups = build_groups(
        model.named_parameters(),
        recipe.optimizer,
        batch_lr_scale=plan.batch_lr_scale,
        width_lr_scale=plan.width_lr_scale,
        muon_weight_decay=plan.muon_weight_decay,
    )
    return build_state(model, groups, ranks, spec)


def open_trunk(
    spec: JobSpec,
    recipe: PretrainRecipe,
    plan: TrainingPlan,
    tokenizer: Tokenizer,
    ranks: Ranks,
) -> PublishedState | None:
    """The beginning that this run shares, if it was given one; one of no use is passed over.

    Its attention and its micro-batches can be told from those of this run only later.
    """
    if TRUNK_INPUT not in spec.inputs:
        return None
    folder = spec.input(TRUNK_INPUT)
    try:
        trunk, (config, _) = PublishedState(folder), read_config(folder)
        other = PretrainRecipe.model_validate(config["training"])
        is_ours = begins_with(recipe, plan.num_iterations, other, trunk.step)
        if not is_ours or config["tokenizer"] != tokenizer.identity:
            raise CheckpointError(f"{folder} is no beginning of this run")
        trunk.check_settings(numerics(spec.execution, ranks.device.type, ranks.world_size))
    except (CheckpointError, KeyError, ValidationError) as error:
        log.warning("a shared beginning cannot be used, training starts at step 0: %s", error)
        return None
    return trunk


def open_batches(
    spec: JobSpec, recipe: PretrainRecipe, plan: TrainingPlan, ranks: Ranks
) -> Callable[[int], list[MicroBatch]]:
    """The micro-batches of this rank at any step; refuses batches and horizons that cannot be.

    Micro-batches are numbered over all ranks, and a rank owns a contiguous range of them, so the
    batch of a step is the same at any number of ranks.
    """
    rows_per_pass = rows_of(spec)
    passes = accumulation_steps(plan.rows_per_step, rows_per_pass, ranks.world_size)
    rows = open_rows(spec, recipe, plan)

    def batches(step: int) -> list[MicroBatch]:
        first = step * plan.rows_per_step + ranks.rank * passes * rows_per_pass
        starts = range(first, first + passes * rows_per_pass, rows_per_pass)
        total = passes * ranks.world_size
        return [read_batch(rows, start, rows_per_pass, total, ranks) for start in starts]

    return batches


def read_batch(rows: TrainRows, first: int, count: int, total: int, ranks: Ranks) -> MicroBatch:
    """Rows of the data as one of `total` micro-batches of a step, all of which weigh the same."""
    inputs, targets = rows.read(first, count)
    # At least 1: a row of one empty document has nothing to predict.
    counted = max(int((targets >= 0).sum()), 1) * total
    return MicroBatch(
        to_device(inputs, ranks.device), to_device(targets, ranks.device), 1 / counted
    )


def open_rows(spec: JobSpec, recipe: PretrainRecipe, plan: TrainingPlan) -> TrainRows:
    """The rows of the tokens artifact, once they fit the tokenizer and suffice for the run."""
    folder = spec.input("tokens")
    rows = TrainRows(
        folder,
        sequence_len=recipe.sequence_len,
        packing=recipe.data.packing,
        block_shards=recipe.data.block_shards,
        seed=recipe.data.seed,
    )
    if rows.index.vocab_size != plan.model.vocab_size:
        raise ConfigError(
            f"{folder} was made with a tokenizer of {rows.index.vocab_size:,} tokens, but "
            f"{spec.input('tokenizer')} has {plan.model.vocab_size:,}; give that tokenizer"
        )
    rows.check_epochs(
        plan.rows_per_step * plan.num_iterations,
        recipe.data.max_epochs,
        rows_per_step=plan.rows_per_step,
    )
    return rows


def run_plan(plan: TrainingPlan, recipe: PretrainRecipe) -> RunPlan:
    """The dial's plan in the terms of the training loop."""
    return RunPlan(
        num_steps=plan.num_iterations,
        rows_per_step=plan.rows_per_step,
        tokens_per_step=plan.tokens_per_step,
        flops_per_token=plan.flops_per_token,
        schedule=recipe.schedule,
    )


def validation(
    spec: JobSpec, model: GPT, tokenizer: Tokenizer, ranks: Ranks
) -> Callable[[], float]:
    """Bits per byte on the first validation rows, with the model as it is."""
    rows = ValidationRows(
        spec.input("tokens"),
        sequence_len=model.config.sequence_len,
        max_tokens=TrainingLooks.of(Path(spec.work_folder)).validation_tokens,
    )

    def evaluate() -> float:
        size = forward_rows(model.config, rows_of(spec))
        batches = rows.batches(size, rank=ranks.rank, world_size=ranks.world_size)
        tensors = ((to_device(x, ranks.device), to_device(y, ranks.device)) for x, y in batches)
        return bits_per_byte(model, tensors, tokenizer.token_bytes, ranks)

    return evaluate


def publish(
    run: TrainingRun, recipe: PretrainRecipe, plan: TrainingPlan, tokenizer: Tokenizer
) -> None:
    """Write weights, config, moments and records, and `outputs.json` last."""
    output, work = Path(run.spec.output_folder), run.work_folder
    config = {
        "model": plan.model.model_dump(mode="json"),
        "training": recipe.model_dump(mode="json"),
        "plan": plan.model_dump(mode="json"),
        "tokenizer": tokenizer.identity,
    }
    files: dict[str, Role] = dict.fromkeys(save_model(run.state.model, output, config), "result")
    checkpoint = run.final_checkpoint()
    files |= publish_optimizer(checkpoint, output)
    files |= publish_training_state(checkpoint, output, run.settings)
    files |= copy_records(work, output)
    StageOutput(
        files=files,
        metrics={
            "train/loss": run.state.smooth_loss,
            "steps": plan.num_iterations,
            "tokens": plan.total_tokens,
            "parameters": sum(p.numel() for p in run.state.model.parameters()),
            "total_training_time": run.state.training_seconds,
            "total_training_flops": float(plan.flops_per_token * plan.total_tokens),
        },
        provenance=provenance(run),
    ).save(output)


def copy_records(work: Path, output: Path) -> dict[str, Role]:
    """Copy metrics and log, as far as they exist, into the artifact."""
    records: dict[str, Role] = {}
    for name in (METRICS_FILE, LOG_FILE):
        if (work / name).exists():
            shutil.copyfile(work / name, output / name)
            records[name] = "record"
    return records


if __name__ == "__main__":
    run_job_main(main)
