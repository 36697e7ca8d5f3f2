"""Shared beginnings (torch-free): which pretraining runs agree for their first steps, and how far.

Where no schedule looks at the horizon before the warm-down, runs of different lengths are the same
run up to there. A *trunk* of N steps is that beginning as an ordinary `pretrain` artifact: constant
rates to its end. A run that *branches* from it loads weights and moments after step N and comes out
bit for bit as if it had started at step 0. Nothing of this is part of a recipe.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_core.artifacts.canonical import canonical_json
from nanochat_core.config.execution import Execution
from nanochat_core.errors import ConfigError
from nanochat_core.optim.recipe import ScheduleRecipe
from nanochat_core.optim.schedules import warmdown_steps
from nanochat_core.training.recipes import PretrainRecipe

TRUNK_INPUT = "trunk"
"""Name of the folder that a job gets the trunk in; it is no input of the artifact."""
STATE_FILE = "training_state.json"
"""Of a published model: what it takes to go on from it, beside weights and moments."""
LEAST_GAIN = 0.02
"""A trunk that saves less than this share of its users' steps is not worth a job of its own."""


@dataclass(frozen=True)
class Beginning:
    """A trunk that is worth making: `users` are the places of the runs that begin with it.

    A run may be a user of several; it starts from the longest, as does a longer trunk.
    """

    steps: int
    recipe: PretrainRecipe
    users: tuple[int, ...]


def is_horizon_free(recipe: PretrainRecipe) -> bool:
    """Whether nothing before the warm-down looks at the number of steps.

    Rates are warm-up and constant until then, and Muon's momentum counts steps; what may look
    ahead is Muon's weight decay, unless it is 0.
    """
    return not recipe.schedule.cosine_weight_decay or recipe.optimizer.matrices.weight_decay == 0


def branch_step(recipe: PretrainRecipe, num_steps: int) -> int:
    """How many steps a run of `num_steps` takes before it looks at its horizon; 0 is from start."""
    if not is_horizon_free(recipe):
        return 0
    return max(num_steps - warmdown_steps(num_steps, recipe.schedule), 0)


def trunk_recipe(recipe: PretrainRecipe, steps: int) -> PretrainRecipe:
    """The recipe whose artifact is the first `steps` steps of every run that shares them.

    What matters only later has its default in it, so that all these runs ask for the same trunk.
    """
    if not is_horizon_free(recipe):
        raise ConfigError(f"runs of this recipe share no beginning: {sharing_hint(recipe)}")
    changed: dict[str, Any] = {
        "schedule": _trunk_schedule(recipe.schedule),
        "num_iterations": steps,
        "target_flops": "auto",
    }
    if _ratio_sets_only_the_horizon(recipe):
        changed["target_param_data_ratio"] = _default("target_param_data_ratio")
    return PretrainRecipe.model_validate({**recipe.model_dump(), **changed})


def begins_with(
    recipe: PretrainRecipe, num_steps: int, other: PretrainRecipe, other_steps: int
) -> bool:
    """Whether a run begins with all of what another recipe's run of `other_steps` did."""
    is_before_branch = 0 < other_steps <= branch_step(recipe, num_steps)
    return is_before_branch and other == trunk_recipe(recipe, other_steps)


def trunk_key(recipe: PretrainRecipe) -> str:
    """A text that is equal for two recipes if their runs share a beginning; '' if none do."""
    if not is_horizon_free(recipe):
        return ""
    return canonical_json(trunk_recipe(recipe, 1).model_dump(mode="json")).decode()


def numerics(execution: Execution, device: str, world_size: int) -> dict[str, Any]:
    """What of an execution decides the bits of a step, beside its attention and micro-batches.

    Runs that differ in it go on from no state of one another. Which GPU or CPU it is, and which
    torch, is left out: between machines not even a resume keeps every bit.
    """
    return {
        "device": device,
        "reduction": execution.reduction,
        "compile": execution.compile_scope if execution.compile else "no",
        "activation_checkpointing": execution.activation_checkpointing,
        # Threads split sums on a CPU, and ranks where they are added up in any order.
        "threads": execution.threads if device == "cpu" else "any",
        "ranks": world_size if execution.reduction == "fast" else "any",
    }


def shared_beginnings(recipes: Sequence[tuple[PretrainRecipe, int]]) -> list[Beginning]:
    """The trunks worth making before runs of these recipes and steps, in the order to make them.

    The runs must be of the same tokens and tokenizer. Each trunk goes on from the one before it of
    the same kind. One where at least two runs could branch is worth making, unless it saves next
    to nothing.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for place, (recipe, num_steps) in enumerate(recipes):
        if branch_step(recipe, num_steps) > 0:
            groups[trunk_key(recipe)].append(place)
    return [each for places in groups.values() for each in _chain(recipes, places)]


def sharing_hint(recipe: PretrainRecipe) -> str:
    """How to let runs of different lengths share their beginnings; '' if they can."""
    if is_horizon_free(recipe):
        return ""
    return (
        "the weight decay follows the number of steps from the first one on "
        "(pretrain.schedule.cosine_weight_decay=true), so runs of different lengths have no step "
        "in common; a constant decay and a short warm-down let them share their beginnings: "
        "--set pretrain.schedule.cosine_weight_decay=false "
        "--set pretrain.schedule.warmdown_fraction=0.2"
    )


def _chain(recipes: Sequence[tuple[PretrainRecipe, int]], places: list[int]) -> list[Beginning]:
    """The trunks of runs that agree in everything before their warm-downs, shortest first."""
    ends = {place: branch_step(*recipes[place]) for place in places}
    chain: list[Beginning] = []
    before = 0
    for steps in sorted(set(ends.values())):
        users = tuple(place for place in places if ends[place] >= steps)
        saved = (len(users) - 1) * (steps - before)
        if saved < max(LEAST_GAIN * sum(recipes[place][1] for place in users), 1):
            continue
        chain.append(Beginning(steps, trunk_recipe(recipes[users[0]][0], steps), users))
        before = steps
    return chain


def _trunk_schedule(schedule: ScheduleRecipe) -> dict[str, Any]:
    """Constant to the end; the decay is constant, too, or a multiple of 0."""
    fields = ScheduleRecipe.model_fields
    return {
        **schedule.model_dump(),
        "warmdown_fraction": 0.0,
        "final_lr_fraction": fields["final_lr_fraction"].default,
        "momentum_end": fields["momentum_end"].default,
        "cosine_weight_decay": False,
    }


def _ratio_sets_only_the_horizon(recipe: PretrainRecipe) -> bool:
    """Whether another ratio of tokens to parameters changes nothing but the number of steps.

    In the laws of batch and decay the ratio cancels, but only up to rounding, which is not enough
    for equal bits.
    """
    decay_is_fixed = not recipe.scale_weight_decay or recipe.optimizer.matrices.weight_decay == 0
    return recipe.tokens_per_step != "auto" and decay_is_fixed


def _default(field: str) -> Any:
    return PretrainRecipe.model_fields[field].default
