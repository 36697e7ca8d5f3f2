import math

import pytest

from nanochat_core.errors import BatchSizeError, ConfigError
from nanochat_core.training.dial import (
    CPU_ROWS,
    accumulation_steps,
    check_device_batch,
    extrapolation_warning,
    most_rows,
    plan_training,
    rows_of_rank,
)
from nanochat_core.training.recipes import PretrainRecipe

VOCAB = 32768


def test_depth_24_at_ratio_8_is_the_published_speedrun() -> None:
    plan = plan_training(PretrainRecipe(depth=24, target_param_data_ratio=8), VOCAB)
    assert plan.tokens_per_step == 2**20
    assert plan.num_iterations == pytest.approx(5570, rel=0.005)
    assert plan.model.n_embd == 1536
    assert plan.model.n_head == 12


def test_depth_12_is_the_reference_point() -> None:
    plan = plan_training(PretrainRecipe(depth=12), VOCAB)
    assert plan.tokens_per_step == 2**19
    assert plan.batch_lr_scale == 1.0
    assert plan.width_lr_scale == 1.0
    assert plan.muon_weight_decay == pytest.approx(0.28)


def test_explicit_steps_change_the_horizon_and_nothing_else() -> None:
    dial = plan_training(PretrainRecipe(depth=16), VOCAB)
    short = plan_training(PretrainRecipe(depth=16, num_iterations=10), VOCAB)
    assert short.num_iterations == 10
    assert short == dial.model_copy(update={"num_iterations": 10})


def test_target_flops_set_the_steps() -> None:
    recipe = PretrainRecipe(depth=12, target_flops=1e18)
    plan = plan_training(recipe, VOCAB)
    assert plan.num_iterations == round(1e18 / (plan.flops_per_token * plan.tokens_per_step))


def test_rates_and_decay_follow_the_batch() -> None:
    plan = plan_training(PretrainRecipe(depth=26), VOCAB)
    ratio = plan.tokens_per_step / 2**19
    reference = plan_training(PretrainRecipe(depth=12), VOCAB)
    assert plan.batch_lr_scale == pytest.approx(math.sqrt(ratio))
    expected = 0.28 * math.sqrt(ratio) * reference.target_tokens / plan.target_tokens
    assert plan.muon_weight_decay == pytest.approx(expected, rel=1e-6)


def test_a_width_that_is_no_whole_number_of_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim=128; use 128"):
        plan_training(PretrainRecipe(depth=2, n_embd=200), VOCAB)


def test_a_batch_that_is_no_whole_number_of_rows_names_one_that_is() -> None:
    recipe = PretrainRecipe(depth=2, tokens_per_step=5000, sequence_len=2048)
    with pytest.raises(BatchSizeError, match="use 4,096"):
        plan_training(recipe, VOCAB)


def test_a_step_that_does_not_divide_over_ranks_names_the_numbers() -> None:
    assert accumulation_steps(64, 8, 2) == 4
    with pytest.raises(BatchSizeError, match=r"8 x 3 ranks.*use a step of 48 rows"):
        accumulation_steps(64, 8, 3)


def test_of_a_batch_that_is_chosen_later_only_the_share_of_a_rank_is_checked() -> None:
    check_device_batch(24, "auto", 8)
    with pytest.raises(BatchSizeError, match=r"24 rows .* among 5 ranks; use a step of 25 rows"):
        check_device_batch(24, "auto", 5)
    with pytest.raises(BatchSizeError, match=r"5 x 1 ranks"):
        check_device_batch(24, 5, 1)


@pytest.mark.parametrize(
    ("rows_per_step", "ranks", "rows"), [(256, 1, 8), (8, 2, 4), (12, 1, 4), (7, 1, 1), (48, 2, 8)]
)
def test_a_cpu_takes_the_largest_power_of_two_up_to_eight_that_divides(
    rows_per_step: int, ranks: int, rows: int
) -> None:
    chosen = min(CPU_ROWS, most_rows(rows_of_rank(rows_per_step, ranks)))
    assert chosen == rows
    assert accumulation_steps(rows_per_step, chosen, ranks) * chosen * ranks == rows_per_step


def test_small_models_are_told_that_the_laws_are_extrapolated() -> None:
    recipe = PretrainRecipe(depth=2)
    assert "extrapolated" in extrapolation_warning(recipe, plan_training(recipe, 2048))
    big = PretrainRecipe(depth=12)
    assert extrapolation_warning(big, plan_training(big, VOCAB)) == ""


def test_overrides_of_the_width_leave_the_reference_model_alone() -> None:
    plain = plan_training(PretrainRecipe(depth=12), VOCAB)
    narrow = plan_training(PretrainRecipe(depth=12, n_embd=512, n_kv_head=4), VOCAB)
    assert narrow.model.n_kv_head == 4
    tokens_ratio = plain.target_tokens / narrow.target_tokens
    batch_scale = math.sqrt(narrow.tokens_per_step / 2**19)
    assert narrow.muon_weight_decay == pytest.approx(0.28 * batch_scale * tokens_ratio)
