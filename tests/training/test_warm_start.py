"""The rates with which fine-tuning starts, against the numbers of RECIPE section 6."""

import pytest

from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.optim.groups import ParamGroup
from nanochat_core.optim.recipe import AdamWGroup, MuonGroup, OptimizerRecipe
from nanochat_core.training.groups import build_groups
from nanochat_core.training.recipes import RL_SCHEDULE, RlRecipe, SftRecipe
from nanochat_core.training.step import rates_at
from nanochat_core.training.warm_start import rl_optimizer, sft_optimizer

CONFIG = ModelConfig(sequence_len=16, vocab_size=64, n_layer=2, n_head=1, n_kv_head=1, n_embd=32)
WIDTH = 1.5


def sft_groups(base: OptimizerRecipe) -> dict[str, ParamGroup]:
    model = GPT(CONFIG)
    model.init_weights(0)
    groups = build_groups(
        model.named_parameters(),
        sft_optimizer(base, SftRecipe()),
        batch_lr_scale=1.0,
        width_lr_scale=WIDTH,
        muon_weight_decay=0.0,
    )
    return {group.name: group for group in groups}


def test_rates_are_four_fifths_of_the_base_models_unscaled_ones() -> None:
    rates = {name: group.lr for name, group in sft_groups(OptimizerRecipe()).items()}
    expected = {
        "head": 0.8 * 0.008 * WIDTH,
        "wte": 0.8 * 0.3 * WIDTH,
        "value_embeddings": 0.8 * 0.15 * WIDTH,
        "resid": 0.8 * 0.005,
        "x0": 0.8 * 0.5,
        "smear": 0.8 * 0.2,
        "matrices": 0.8 * 0.02,
    }
    assert rates == pytest.approx(expected)


def test_a_base_model_hands_on_its_rates_and_decay_but_no_scale() -> None:
    base = OptimizerRecipe(
        wte=AdamWGroup(lr=0.2, beta2=0.9, weight_decay=0.003),
        matrices=MuonGroup(lr=0.01),
        lr_scale=3.0,
        scalar_lr_scale=0.1,
    )
    groups = sft_groups(base)
    assert groups["wte"].lr == pytest.approx(0.8 * 0.2 * WIDTH)
    assert groups["value_embeddings"].lr == pytest.approx(0.8 * 0.1 * WIDTH)
    assert groups["x0"].lr == pytest.approx(0.8 * 0.5)
    assert groups["matrices"].lr == pytest.approx(0.8 * 0.01)
    assert (groups["wte"].beta2, groups["wte"].weight_decay) == (0.9, 0.003)
    assert groups["matrices"].weight_decay == 0.0


def test_reinforcement_learning_has_rates_of_its_own() -> None:
    base = OptimizerRecipe(
        wte=AdamWGroup(lr=7.0, beta2=0.9, weight_decay=0.003), lr_scale=3.0, scalar_lr_scale=0.1
    )
    model = GPT(CONFIG)
    model.init_weights(0)
    built = build_groups(
        model.named_parameters(),
        rl_optimizer(base, RlRecipe()),
        batch_lr_scale=1.0,
        width_lr_scale=WIDTH,
        muon_weight_decay=0.0,
    )
    groups = {group.name: group for group in built}
    expected = {
        "head": 0.05 * 0.004 * WIDTH,
        "wte": 0.05 * 0.2 * WIDTH,
        "value_embeddings": 0.05 * 0.1 * WIDTH,
        "resid": 0.05 * 0.005,
        "x0": 0.05 * 0.5,
        "smear": 0.05 * 0.2,
        "matrices": 0.05 * 0.02,
    }
    assert {name: group.lr for name, group in groups.items()} == pytest.approx(expected)
    assert (groups["wte"].beta2, groups["wte"].weight_decay) == (0.9, 0.003)


def test_the_rates_of_reinforcement_learning_fall_linearly_to_nothing() -> None:
    for step in (0, 1, 233, 466):
        rates = rates_at(step, 467, RL_SCHEDULE)
        assert rates.lr_multiplier == pytest.approx(1 - step / 467)
        assert rates.momentum == pytest.approx(0.95)
        assert rates.weight_decay_multiplier == 1.0
