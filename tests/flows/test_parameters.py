"""Parameters of a run: what is accepted, what it means, and what each mistake says."""

from pathlib import Path
from typing import Any

import pytest

from flows.overrides import parse_assignment
from flows.parameters import ResolvedRun, check, parse_parameters
from flows.presets import MAKING_STATIONS, PRESETS, STATIONS, Executions, Recipes
from nanochat_core.config.execution import Execution
from nanochat_core.data.recipes import HarvestSource
from nanochat_core.errors import BatchSizeError, ConfigError, UnknownNameError
from nanochat_core.training.dial import plan_training

WITHOUT_BENCHMARKS = tuple(name for name in STATIONS if name != "benchmarks")
SOURCE = HarvestSource(versions={"pip": "1"}, python="3.11")


def checked(environ: dict[str, str] | None = None, **values: Any) -> ResolvedRun:
    return check(parse_parameters(values), environ or {})


def with_override(name: str, value: Any) -> ResolvedRun:
    return checked(preset="tiny", overrides={name: value})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_every_station_and_a_batch_that_divides(name: str) -> None:
    preset = PRESETS[name](SOURCE)
    assert tuple(Recipes.model_fields) == tuple(Executions.model_fields) == MAKING_STATIONS
    plan = plan_training(preset.recipes.pretrain, preset.recipes.tokenizer.vocab_size)
    rows = preset.executions.pretrain.device_batch_size
    assert rows == "auto" or plan.rows_per_step % rows == 0
    # Published shards would be asked for on the network.
    assert checked(preset=name, source=("docs",)).stations == WITHOUT_BENCHMARKS


@pytest.mark.parametrize("station", MAKING_STATIONS)
def test_no_field_is_both_what_is_computed_and_where_it_runs(station: str) -> None:
    recipe = Recipes.model_fields[station].annotation
    execution = Executions.model_fields[station].annotation
    assert execution is Execution
    assert not set(recipe.model_fields) & set(Execution.model_fields)


def test_the_demo_sees_three_million_tokens_at_the_measured_size() -> None:
    recipes = checked(preset="demo").preset.recipes
    plan = plan_training(recipes.pretrain, recipes.tokenizer.vocab_size)
    assert plan.total_tokens == 3_072_000
    assert (plan.model.n_layer, plan.model.n_embd, plan.model.n_head) == (2, 128, 1)
    assert plan.batch_lr_scale == 1.0
    assert plan.muon_weight_decay == 0.0


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sft.epochs", "2", 2.0),
        ("sft.epochs", "auto", "auto"),
        ("sft.schedule.warmdown_fraction", "0.25", 0.25),
        ("sft.mixture.parts.1.conversations", "9", 9),
        ("sft.mixture.name", "7", "7"),
        ("pretrain.optimizer.matrices.lr", 0.03, 0.03),
        ("pretrain.scale_weight_decay", "true", True),
        ("pretrain.window_pattern", "L", "L"),
        ("chat_eval_sft.sums", "0", 0),
    ],
)
def test_a_field_of_a_recipe_is_set_by_its_name(name: str, value: Any, expected: Any) -> None:
    station, *path = name.split(".")
    found: Any = getattr(with_override(name, value).preset.recipes, station)
    for part in path:
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == expected


def test_a_field_of_the_execution_leaves_the_recipe_alone() -> None:
    run = with_override("pretrain.device_batch_size", "2")
    assert run.preset.executions.pretrain.device_batch_size == 2
    assert run.preset.recipes == checked(preset="tiny").preset.recipes


def test_fields_that_depend_on_each_other_are_checked_together() -> None:
    changes = {"pretrain.n_embd": "48", "pretrain.head_dim": "12"}
    assert checked(preset="tiny", overrides=changes).preset.recipes.pretrain.n_embd == 48
    with pytest.raises(ConfigError, match="give one of them"):
        checked(overrides={"sft.epochs": "2", "sft.num_iterations": "5"})


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"preset": "dmo"}, UnknownNameError, "no preset 'dmo'; did you mean demo"),
        ({"prest": "demo"}, UnknownNameError, "no parameter 'prest'; did you mean preset"),
        ({"depth": "deep"}, ConfigError, "depth='deep': expected a whole number"),
        ({"wait": "perhaps"}, ConfigError, "wait='perhaps'"),
        ({"start_from": "sftt"}, UnknownNameError, "no station 'sftt'; did you mean sft"),
        ({"stop_after": "pretain"}, UnknownNameError, "did you mean pretrain"),
        ({"force": ["tokenzer"]}, UnknownNameError, "did you mean tokenizer"),
        ({"force": ["sft"], "stop_after": "tokens"}, ConfigError, "choose a later --stop-after"),
        ({"force": ["benchmarks"]}, ConfigError, "only with --benchmarks FOLDER"),
        ({"start_from": "benchmarks"}, ConfigError, "only with --benchmarks FOLDER"),
        ({"compute_dtype": "bf16"}, UnknownNameError, "bfloat16"),
    ],
)
def test_a_mistake_in_a_parameter_says_which_and_what_would_work(
    values: dict[str, Any], kind: type[ConfigError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        checked(**values)


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("stf.epochs", "2", UnknownNameError, "no station 'stf'; did you mean sft"),
        ("sft.epoch", "2", UnknownNameError, "sft.epoch: 'epoch'; did you mean epochs"),
        ("sft.rank", "2", UnknownNameError, "did you mean ranks"),
        ("sft.schedule.warmup", "2", UnknownNameError, "did you mean warmup_steps"),
        ("sft.mixture.parts.9.kind", "sums", UnknownNameError, "place from 0 to 2"),
        ("sft.mixture.parts.0.kind", "poems", UnknownNameError, "identity"),
        ("pretrain.depth.x", "2", UnknownNameError, "with no fields"),
        ("pretrain.compute_dtype", "bf16", UnknownNameError, "'bfloat16' or 'float16'"),
        ("sft.epochs", "two", ConfigError, "sft.epochs='two': .*valid number.*'auto'"),
        ("release.name", "x", ConfigError, "expected STATION.field=value"),
        ("sft", "x", ConfigError, "expected STATION.field=value"),
        ("pretrain.tokens_per_step", "1000", BatchSizeError, "multiple of"),
        ("pretrain.device_batch_size", "3", BatchSizeError, "multiple of 3"),
        ("sft.device_batch_size", "3", BatchSizeError, "multiple of 3"),
        ("pretrain.n_embd", "40", ConfigError, "head_dim"),
        ("pretrain.seed", "-1", ConfigError, "pretrain.seed=-1"),
    ],
)
def test_a_mistake_in_an_override_names_the_field(
    name: str, value: str, kind: type[ConfigError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        with_override(name, value)


def test_an_assignment_needs_an_equals_sign() -> None:
    assert parse_assignment("sft.mixture.name = a=b") == ("sft.mixture.name", "a=b")
    with pytest.raises(ConfigError, match=r"as in sft\.epochs=2"):
        parse_assignment("sft.epochs")


def test_depth_is_the_dial_and_keeps_the_other_overrides() -> None:
    recipes = checked(preset="tiny", depth="3").preset.recipes
    plan = plan_training(recipes.pretrain, recipes.tokenizer.vocab_size)
    assert (plan.model.n_layer, plan.model.n_embd) == (3, 48)
    assert plan.tokens_per_step == 512


def test_the_dtype_of_the_environment_enters_every_recipe_that_computes() -> None:
    recipes = checked({"NANOCHAT_DTYPE": "float16"}, preset="tiny").preset.recipes
    assert recipes.pretrain.compute_dtype == recipes.sft.compute_dtype == "float16"
    assert recipes.base_eval.compute_dtype == recipes.chat_eval_sft.compute_dtype == "float16"


def test_what_is_asked_for_by_name_wins_over_the_environment() -> None:
    values = {"overrides": {"sft.compute_dtype": "float32"}, "preset": "tiny"}
    recipes = checked({"NANOCHAT_DTYPE": "bfloat16"}, **values).preset.recipes
    assert (recipes.sft.compute_dtype, recipes.pretrain.compute_dtype) == ("float32", "bfloat16")


def test_starting_from_a_station_makes_it_and_all_after_it_again() -> None:
    after = ("chat_eval_sft", "rl", "chat_eval_rl", "report", "release")
    assert checked(start_from="sft").forced == ("sft", *after)
    assert checked(start_from="tokens", stop_after="pretrain").forced == ("tokens", "pretrain")


def test_stopping_after_a_station_leaves_the_rest_out() -> None:
    assert checked(stop_after="tokens").stations == ("shards", "tokenizer", "tokens")


def test_the_store_comes_from_the_environment_unless_it_is_named() -> None:
    assert checked({"NANOCHAT_STORE": "/here"}).store_url == "/here"
    assert checked({"NANOCHAT_STORE": "/here"}, store="/there").store_url == "/there"


def test_a_depth_where_the_laws_are_extrapolated_is_said() -> None:
    changes = {"pretrain.tokens_per_step": "auto", "pretrain.scale_weight_decay": "true"}
    run = checked(overrides={**changes, "pretrain.device_batch_size": "8"})
    assert "extrapolated" in run.warnings[0]
    assert checked().warnings == ()


def test_a_folder_of_benchmarks_is_a_station_and_is_put_to_both_chat_models(
    tmp_path: Path,
) -> None:
    (tmp_path / "gsm8k-test.jsonl").write_text("{}")
    (tmp_path / "gsm8k-train.jsonl").write_text("{}")
    resolved = checked(benchmarks=str(tmp_path), overrides={"rl.task": "gsm8k"})
    recipes = resolved.preset.recipes
    assert resolved.stations == STATIONS
    assert resolved.source_paths["benchmarks"] == (str(tmp_path),)
    assert [file.name for file in recipes.benchmarks.files] == [
        "gsm8k-test.jsonl",
        "gsm8k-train.jsonl",
    ]
    for recipe in (recipes.chat_eval_sft, recipes.chat_eval_rl):
        assert recipe.benchmarks == ("identity", "sums", "gsm8k")
    assert recipes.rl.task == "gsm8k"


TRAINED = ("pretrain", "sft", "rl")


@pytest.mark.parametrize(
    ("values", "tracker", "run"),
    [
        ({}, "none", ""),
        ({"run": "dummy"}, "none", ""),
        ({"run": "dummy", "tracker": "wandb"}, "none", ""),
        ({"run": "first"}, "wandb", "first"),
        ({"tracker": "trackio"}, "trackio", "demo"),
        ({"run": "first", "tracker": "trackio"}, "trackio", "first"),
    ],
)
def test_a_named_run_or_a_tracker_turns_tracking_on(
    values: dict[str, str], tracker: str, run: str
) -> None:
    executions = checked(**values).preset.executions
    for station in TRAINED:
        execution = getattr(executions, station)
        assert execution.tracker == tracker
        assert execution.tracker_run == (run and f"{run}-{station}")
    assert executions.base_eval.tracker == "none"
