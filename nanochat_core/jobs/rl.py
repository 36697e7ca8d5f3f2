"""Reinforcement learning as a torchrun job: a chat model and judged problems in, a better one."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from nanochat_core.benchmarks.base import GenerativeBenchmark, Split
from nanochat_core.benchmarks.open import open_generative
from nanochat_core.config.job import METRICS_FILE, JobSpec, Role, StageOutput
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import BatchSizeError
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.loading import load_pair, save_model
from nanochat_core.jobs.common import StopRequest, run_job_main
from nanochat_core.jobs.device_rows import DeviceRows, rows_of, settle_training
from nanochat_core.jobs.pretrain import copy_records
from nanochat_core.jobs.training_run import RunPlan, TrainingRun, build_state, provenance
from nanochat_core.model.counts import flops_per_token
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.dial import TrainingPlan
from nanochat_core.training.groups import build_groups
from nanochat_core.training.pass_at_k import measure_pass_at_k
from nanochat_core.training.policy_batches import PolicyBatches
from nanochat_core.training.precision import resolve_compute_dtype
from nanochat_core.training.recipes import PretrainRecipe, RlRecipe
from nanochat_core.training.rollout_files import mean_rewards, merge_steps
from nanochat_core.training.rollouts import RolloutMaker
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import MicroBatch
from nanochat_core.training.warm_start import rl_optimizer

ROLLOUTS = "rollouts"
ROLLOUTS_FILE = "rollouts.parquet"
STEPS_AT_ENDS = 5
"""Steps of which the reward at the start and at the end is the mean."""


@dataclass(frozen=True)
class ChatModel:
    """The fine-tuned model that learns on, and what its config.json says."""

    model: GPT
    tokenizer: Tokenizer
    config: dict[str, Any]


def main(spec: JobSpec, ranks: Ranks, stop: StopRequest) -> None:
    """Train on rewards, saving as it goes, then write the files of the artifact."""
    recipe = RlRecipe.model_validate(spec.recipe)
    check_ranks(recipe, ranks)
    train_problems = open_problems(spec, recipe, "train")
    device_rows = DeviceRows(spec, ranks)
    with device_rows.told():
        chat = load_chat_model(spec, recipe, ranks)
        plan = run_plan(recipe, chat, len(train_problems))
        run = TrainingRun(spec, ranks, plan, fresh_state(chat, recipe, spec, ranks))
        settle_training(
            device_rows, run, plan.rows_per_step, lambda size: trial_batch(chat, size, ranks)
        )
        engine = InferenceEngine(chat.model, chat.tokenizer)
        train_on_rewards(run, RolloutMaker(engine, train_problems, recipe, stop))
    if ranks.is_main:
        publish(run, recipe, chat)


def train_on_rewards(run: TrainingRun, maker: RolloutMaker) -> None:
    """Let the model answer and learn, with pass@k of problems that it never learns from."""
    batches = PolicyBatches(maker, run.ranks, rows_of(run.spec), run.work_folder / ROLLOUTS)
    test_maker = replace(maker, benchmark=open_problems(run.spec, maker.recipe, "test"))
    pass_at_k = run.evaluation_hook(
        lambda: measure_pass_at_k(test_maker, run.ranks),
        "pass@1",
        run.spec.execution.eval_every,
        at_ends=True,
    )
    run.train(
        batches, maker.stop_requested, more_hooks=[pass_at_k], rewards=lambda: batches.measured
    )


def trial_batch(chat: ChatModel, size: int, ranks: Ranks) -> MicroBatch:
    """Rows as long as any, to see how much memory so many of them take."""
    shape = size, chat.model.config.sequence_len
    tokens_BT = torch.full(shape, chat.tokenizer.bos_id, device=ranks.device)
    weights_BT = torch.ones(shape, device=ranks.device)
    return MicroBatch(tokens_BT, tokens_BT, 1.0, weights_BT)


def check_ranks(recipe: RlRecipe, ranks: Ranks) -> None:
    """Refuse a number of ranks that does not share out the questions of a step evenly."""
    if recipe.questions_per_step % ranks.world_size:
        whole = -(-recipe.questions_per_step // ranks.world_size) * ranks.world_size
        raise BatchSizeError(
            f"rl.questions_per_step={recipe.questions_per_step} is not a multiple of "
            f"{ranks.world_size} ranks; use {whole} questions, or a number of ranks that divides"
        )


def load_chat_model(spec: JobSpec, recipe: RlRecipe, ranks: Ranks) -> ChatModel:
    """Load the chat model, refusing one that was trained with another tokenizer."""
    dtype = resolve_compute_dtype(recipe.compute_dtype, ranks.device)
    model, config, tokenizer = load_pair(
        spec.input("sft"), spec.input("tokenizer"), ranks.device, dtype
    )
    return ChatModel(model, tokenizer, config)


def open_problems(spec: JobSpec, recipe: RlRecipe, split: Split) -> GenerativeBenchmark:
    """The problems of a split; made ones need no files."""
    folder = spec.input("benchmarks") if "benchmarks" in spec.inputs else None
    count = recipe.problems if split == "train" else recipe.pass_at_k_questions
    return open_generative(recipe.task, split, folder=folder, count=count, seed=recipe.seed)


def run_plan(recipe: RlRecipe, chat: ChatModel, num_problems: int) -> RunPlan:
    """Steps as given, or as many as ask every problem once."""
    once = max(1, num_problems // recipe.questions_per_step)
    steps = once if recipe.num_iterations == "auto" else int(recipe.num_iterations)
    rows = recipe.questions_per_step * recipe.samples_per_question
    return RunPlan(
        num_steps=steps,
        rows_per_step=rows,
        tokens_per_step=rows * chat.model.config.sequence_len,
        flops_per_token=flops_per_token(chat.model.config),
        schedule=recipe.schedule,
    )


def fresh_state(chat: ChatModel, recipe: RlRecipe, spec: JobSpec, ranks: Ranks) -> TrainState:
    """The chat model's weights under a new optimizer."""
    base = PretrainRecipe.model_validate(chat.config["training"])
    plan = TrainingPlan.model_validate(chat.config["plan"])
    groups = build_groups(
        chat.model.named_parameters(),
        rl_optimizer(base.optimizer, recipe),
        batch_lr_scale=1.0,
        width_lr_scale=plan.width_lr_scale,
        muon_weight_decay=0.0,
    )
    return build_state(chat.model, groups, ranks, spec)


def publish(run: TrainingRun, recipe: RlRecipe, chat: ChatModel) -> None:
    """Write weights, config and records, and `outputs.json` last."""
    output = Path(run.spec.output_folder)
    config = {**chat.config, "rl": recipe.model_dump(mode="json")}
    files: dict[str, Role] = dict.fromkeys(save_model(chat.model, output, config), "result")
    files |= copy_records(run.work_folder, output)
    merge_steps(run.work_folder / ROLLOUTS, output / ROLLOUTS_FILE)
    files[ROLLOUTS_FILE] = "record"
    rewards = mean_rewards(run.work_folder / ROLLOUTS)
    StageOutput(
        files=files,
        metrics={
            "rl/reward_start": fmean(rewards[:STEPS_AT_ENDS]),
            "rl/reward_end": fmean(rewards[-STEPS_AT_ENDS:]),
            **last_pass_at_k(run.work_folder / METRICS_FILE),
            "steps": run.plan.num_steps,
            "total_training_time": run.state.training_seconds,
        },
        provenance=provenance(run),
    ).save(output)


def last_pass_at_k(path: Path) -> dict[str, float | int | str]:
    """pass@1 and pass@k of the last evaluation, if there was one."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if "pass@1" in line]
    if not found:
        return {}
    names = [name for name in found[-1] if name.startswith("pass@")]
    return {name: found[-1][name] for name in (names[0], names[-1])}


if __name__ == "__main__":
    run_job_main(main)
