"""Which runs share their first steps, and which beginnings are worth making."""

import itertools

import pytest

from nanochat_core.errors import ConfigError
from nanochat_core.optim.recipe import MuonGroup, OptimizerRecipe, ScheduleRecipe
from nanochat_core.training.dial import plan_training
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.step import rates_at
from nanochat_core.training.trunk import (
    begins_with,
    branch_step,
    is_horizon_free,
    shared_beginnings,
    sharing_hint,
    trunk_key,
    trunk_recipe,
)

VOCAB = 32768
FREE = ScheduleRecipe(
    cosine_weight_decay=False, warmdown_fraction=0.2, warmup_steps=3, momentum_ramp_steps=30
)
RECIPE = PretrainRecipe(depth=2, num_iterations=100, schedule=FREE)
NO_DECAY = OptimizerRecipe(matrices=MuonGroup(weight_decay=0.0))


def changed(recipe: PretrainRecipe = RECIPE, **values: object) -> PretrainRecipe:
    return PretrainRecipe.model_validate({**recipe.model_dump(), **values})


def scheduled(**values: object) -> PretrainRecipe:
    return changed(schedule={**FREE.model_dump(), **values})


def test_a_run_and_its_trunk_have_equal_rates_in_every_step_before_the_branch() -> None:
    fractions, ends, ramps = (0.0, 0.2, 0.65, 1.0), (0.0, 0.5), (0, 30, 90)
    for fraction, end, ramp in itertools.product(fractions, ends, ramps):
        recipe = scheduled(
            warmdown_fraction=fraction,
            final_lr_fraction=end,
            momentum_end=end,
            momentum_ramp_steps=ramp,
        )
        steps = branch_step(recipe, 100)
        assert steps == 100 - round(100 * fraction)
        if steps:
            trunk = trunk_recipe(recipe, steps)
            for step in range(steps):
                own = rates_at(step, 100, recipe.schedule)
                assert own == rates_at(step, steps, trunk.schedule)


def test_a_cosine_decay_looks_at_the_horizon_unless_it_multiplies_nothing() -> None:
    cosine = scheduled(cosine_weight_decay=True)
    assert not is_horizon_free(cosine)
    assert branch_step(cosine, 100) == 0
    assert trunk_key(cosine) == ""
    with pytest.raises(ConfigError, match="cosine_weight_decay=false"):
        trunk_recipe(cosine, 10)
    without = changed(cosine, optimizer=NO_DECAY)
    assert is_horizon_free(without)
    assert trunk_key(without) == trunk_key(changed(optimizer=NO_DECAY))


def test_what_matters_only_after_the_branch_does_not_make_another_trunk() -> None:
    alike = [
        RECIPE,
        changed(num_iterations=200),
        changed(num_iterations="auto"),
        changed(num_iterations="auto", target_flops=1e15),
        scheduled(warmdown_fraction=0.5),
        scheduled(final_lr_fraction=0.3),
        scheduled(momentum_end=0.5),
    ]
    assert len({trunk_key(recipe) for recipe in alike}) == 1
    assert len({trunk_recipe(recipe, 7).model_dump_json() for recipe in alike}) == 1


def test_whatever_else_differs_makes_another_trunk() -> None:
    values = RECIPE.model_dump()
    others = [
        changed(depth=3),
        changed(seed=1),
        changed(compute_dtype="float32"),
        changed(tokens_per_step=4096),
        changed(target_param_data_ratio=8.0),
        changed(sequence_len=1024),
        changed(data={**values["data"], "seed": 7}),
        changed(optimizer={**values["optimizer"], "lr_scale": 0.5}),
        scheduled(warmup_steps=4),
        scheduled(momentum_ramp_steps=31),
        scheduled(momentum_peak=0.96),
    ]
    keys = {trunk_key(recipe) for recipe in (RECIPE, *others)}
    assert len(keys) == 1 + len(others)


@pytest.mark.parametrize("ratio", [0.37, 7.0, 8.0, 12.0])
@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        changed(tokens_per_step=4096),
        changed(tokens_per_step=4096, scale_weight_decay=False),
        changed(tokens_per_step=4096, optimizer=NO_DECAY),
        changed(optimizer=NO_DECAY),
    ],
)
def test_a_trunk_has_the_very_batch_rates_and_decay_of_its_runs(
    recipe: PretrainRecipe, ratio: float
) -> None:
    run = plan_training(changed(recipe, target_param_data_ratio=ratio), VOCAB)
    asked = changed(recipe, target_param_data_ratio=ratio)
    trunk = plan_training(trunk_recipe(asked, 5), VOCAB)
    same = {"num_iterations": 5, "target_tokens": trunk.target_tokens}
    assert trunk == run.model_copy(update=same)


def test_a_ratio_that_sets_only_the_steps_is_shared() -> None:
    fixed = changed(tokens_per_step=4096, scale_weight_decay=False, num_iterations="auto")
    assert trunk_key(fixed) == trunk_key(changed(fixed, target_param_data_ratio=5.0))


def test_a_trunk_is_its_own_trunk_and_begins_with_shorter_ones() -> None:
    trunk = trunk_recipe(RECIPE, 80)
    assert trunk_recipe(trunk, 80) == trunk
    assert branch_step(trunk, 80) == 80
    assert begins_with(trunk, 80, trunk_recipe(RECIPE, 60), 60)
    assert begins_with(RECIPE, 100, trunk, 80)
    assert not begins_with(RECIPE, 100, trunk_recipe(RECIPE, 81), 81)
    assert not begins_with(RECIPE, 100, RECIPE, 80)
    assert not begins_with(changed(seed=1), 100, trunk, 80)


def steps_run(horizons: tuple[int, ...]) -> int:
    """Steps of runs of RECIPE's schedule and their trunks, each from the longest trunk before."""
    points = [(changed(num_iterations=n), n) for n in horizons]
    chain = shared_beginnings(points)
    trunks = [each.steps for each in chain]
    of_trunks = sum(steps - max((t for t in trunks if t < steps), default=0) for steps in trunks)
    starts = [max((b.steps for b in chain if i in b.users), default=0) for i in range(len(points))]
    return of_trunks + sum(n - start for (_, n), start in zip(points, starts, strict=True))


def test_horizons_of_two_three_and_four_cost_less_than_three_fifths() -> None:
    assert steps_run((200, 300, 400)) == 500
    assert steps_run((400, 200, 300)) == 500
    assert steps_run((100,)) == 100
    assert steps_run((100, 100)) == 120


def test_beginnings_come_shortest_first_with_the_runs_that_use_them() -> None:
    points = [(changed(num_iterations=n), n) for n in (400, 200, 300)]
    short, long = shared_beginnings(points)
    assert (short.steps, short.users) == (160, (0, 1, 2))
    assert (long.steps, long.users) == (240, (0, 2))
    assert short.recipe == trunk_recipe(RECIPE, 160)


def test_runs_that_share_nothing_get_no_trunk() -> None:
    cosine = scheduled(cosine_weight_decay=True)
    assert shared_beginnings([(cosine, 100), (cosine, 200)]) == []
    assert shared_beginnings([(RECIPE, 100), (changed(seed=1), 100)]) == []
    all_decay = scheduled(warmdown_fraction=1.0)
    assert shared_beginnings([(all_decay, 100), (all_decay, 200)]) == []
    assert shared_beginnings([]) == []


def test_kinds_of_runs_get_trunks_of_their_own() -> None:
    other = changed(seed=1)
    points = [(recipe, steps) for steps in (100, 200) for recipe in (RECIPE, other)]
    assert [each.users for each in shared_beginnings(points)] == [(0, 2), (1, 3)]


def test_a_trunk_that_saves_next_to_nothing_is_left_out() -> None:
    points = [(RECIPE, n) for n in (1000, 1001, 1002, 1003)]
    (only,) = shared_beginnings(points)
    assert (only.steps, only.users) == (800, (0, 1, 2, 3))


def test_runs_that_cannot_share_are_told_how_they_could() -> None:
    hint = sharing_hint(scheduled(cosine_weight_decay=True))
    assert "--set pretrain.schedule.cosine_weight_decay=false" in hint
    assert "--set pretrain.schedule.warmdown_fraction=0.2" in hint
    assert sharing_hint(RECIPE) == ""
