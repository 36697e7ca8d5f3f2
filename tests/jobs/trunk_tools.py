"""Runs that share their beginnings, as jobs in this process."""

import json
from pathlib import Path
from typing import Any

import torch
from job_tools import PRETRAIN, make_spec

from nanochat_core.config.job import METRICS_FILE, JobSpec, StageOutput
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.jobs import pretrain
from nanochat_core.jobs.common import StopRequest
from nanochat_core.optim.recipe import ScheduleRecipe
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.trunk import TRUNK_INPUT, trunk_recipe

FREE = ScheduleRecipe(warmup_steps=2, warmdown_fraction=0.2, cosine_weight_decay=False)
TIMES = ("train/dt", "train/tok_per_sec", "total_training_time")


class StopAfter(StopRequest):
    """A stop request that comes after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def __call__(self) -> bool:
        self.steps -= 1
        return self.steps <= 0


def horizon(steps: int, **changes: Any) -> PretrainRecipe:
    """A run of so many steps, of which the last fifth decays."""
    values = {**PRETRAIN.model_dump(), "schedule": FREE, "num_iterations": steps, **changes}
    return PretrainRecipe.model_validate(values)


def train(
    recipe: PretrainRecipe,
    line: dict[str, str],
    folder: Path,
    *,
    trunk: str = "",
    stop: StopRequest | None = None,
    **execution: Any,
) -> JobSpec:
    """Run the job, from the published state in `trunk` if that is given."""
    inputs = {**line, TRUNK_INPUT: trunk} if trunk else line
    spec = make_spec(recipe, inputs, folder, station="pretrain", **execution)
    before = torch.get_num_threads()
    # Sums of several threads come in other orders.
    torch.set_num_threads(1)
    try:
        pretrain.main(spec, Ranks.single(), stop or StopRequest())
    finally:
        torch.set_num_threads(before)
    return spec


def train_trunk(
    recipe: PretrainRecipe, steps: int, line: dict[str, str], folder: Path, trunk: str = ""
) -> str:
    """Make the first steps of a run; returns the folder of what it published."""
    return train(trunk_recipe(recipe, steps), line, folder, trunk=trunk).output_folder


def started_at(spec: JobSpec) -> int:
    """The first step that the process which finished the job has computed itself."""
    told = StageOutput.load(Path(spec.output_folder)).provenance
    return int(told["resumed_from_step"])


def shared_steps(spec: JobSpec) -> int:
    """How many steps were taken from a trunk."""
    told = StageOutput.load(Path(spec.output_folder)).provenance
    return int(told.get("started_from_step", 0))


def metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock said."""
    text = (Path(folder) / METRICS_FILE).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
