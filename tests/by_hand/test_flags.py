"""The flags of the reference: which there are, how they are spelled, what they become."""

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows.by_hand.asking import Request, ask
from flows.by_hand.commands import SETTINGS, TABLES, command
from flows.by_hand.flags import check_inherited, translate
from flows.presets import PRESETS
from nanochat_core.config.execution import Execution
from nanochat_core.data.recipes import HarvestSource
from nanochat_core.errors import ConfigError, UnknownNameError

REFERENCE = {
    "pretrain": "run device-type fp8 fp8-recipe depth aspect-ratio head-dim max-seq-len "
    "window-pattern num-iterations target-flops target-param-data-ratio device-batch-size "
    "total-batch-size embedding-lr unembedding-lr weight-decay matrix-lr scalar-lr warmup-steps "
    "warmdown-ratio final-lr-frac resume-from-step eval-every eval-tokens core-metric-every "
    "core-metric-max-per-task sample-every save-every model-tag",
    "sft": "run device-type model-tag model-step load-optimizer num-iterations max-seq-len "
    "device-batch-size total-batch-size embedding-lr unembedding-lr matrix-lr init-lr-frac "
    "warmup-ratio warmdown-ratio final-lr-frac eval-every eval-tokens chatcore-every "
    "chatcore-max-cat chatcore-max-sample mmlu-epochs gsm8k-epochs",
    "rl": "run device-type source model-tag model-step num-epochs device-batch-size "
    "examples-per-step num-samples max-new-tokens temperature top-k embedding-lr unembedding-lr "
    "matrix-lr weight-decay init-lr-frac eval-every eval-examples save-every",
    "base_eval": "eval hf-path model-tag step max-per-task device-batch-size split-tokens "
    "device-type",
    "chat_eval": "source task-name temperature max-new-tokens num-samples top-k batch-size "
    "model-tag step max-problems device-type",
}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"NANOCHAT_BASE_DIR": str(tmp_path)}


def asked(environ: Mapping[str, str], station: str = "pretrain", **values: Any) -> Any:
    return ask(Request(station, TABLES[station][1], values, environ))


def parse(name: str, *arguments: str) -> dict[str, Any]:
    """What typer makes of a command line."""
    taken: dict[str, Any] = {}
    app = typer.Typer()
    app.command(context_settings=SETTINGS)(command(TABLES[name][1], taken.update, "Doc."))
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return {name: value for name, value in taken.items() if value not in (None, [])}


@pytest.mark.parametrize("name", REFERENCE)
def test_every_flag_of_the_reference_is_known(name: str) -> None:
    assert set(REFERENCE[name].split()) <= {flag.name for flag in TABLES[name][1]}


@pytest.mark.parametrize("name", TABLES)
def test_every_flag_means_something_that_exists(name: str) -> None:
    station, flags = TABLES[name]
    recipes = PRESETS["demo"](HarvestSource(versions={}, python="")).recipes
    recipe = getattr(recipes, "chat_eval_sft" if station == "chat_eval" else station)
    assert len({flag.name for flag in flags}) == len(flags)
    for flag in flags:
        assert bool(flag.why) == (flag.meaning in ("noted", "refused")), flag.name
        places = flag.fields if flag.meaning == "recipe" else ()
        for place in places:
            value = recipe
            for part in place.split("."):
                assert part in type(value).model_fields, f"{flag.name}: {place}"
                value = getattr(value, part)
        if flag.meaning == "execution":
            assert set(flag.fields) <= Execution.model_fields.keys(), flag.name


def test_dashes_and_underscores_are_the_same() -> None:
    dashes = parse("pretrain", "--device-batch-size=4", "--max-seq-len", "64", "--fp8")
    lines = parse("pretrain", "--device_batch_size=4", "--max_seq_len", "64", "--fp8")
    assert dashes == lines
    assert dashes["device_batch_size"] == "4"
    assert dashes["max_seq_len"] == 64


@pytest.mark.parametrize("station", ["pretrain", "sft", "rl", "base_eval", "chat_eval"])
def test_the_rows_of_a_pass_are_a_number_or_auto(environ: dict[str, str], station: str) -> None:
    flag = "batch-size" if station == "chat_eval" else "device-batch-size"
    for word, rows in (("4", 4), ("auto", "auto")):
        values = parse(station, f"--{flag}", word)
        assert asked(environ, station, **values).execution.device_batch_size == rows
    for word in ("0", "many"):
        with pytest.raises(ConfigError, match="device_batch_size"):
            asked(environ, station, **parse(station, f"--{flag}", word))


def test_short_flags_of_chat_eval() -> None:
    taken = parse("chat_eval", "-i", "sft", "-a", "GSM8K|MMLU", "-x", "5", "-g", "d12")
    given = {name: taken[name] for name in ("source", "task_name", "max_problems", "model_tag")}
    assert given == {
        "source": "sft",
        "task_name": "GSM8K|MMLU",
        "max_problems": 5,
        "model_tag": "d12",
    }


def test_minus_one_is_off(environ: dict[str, str]) -> None:
    flags = ("num_iterations", "target_flops", "total_batch_size", "eval_every", "sample_every")
    off = asked(environ, core_metric_every=-1, save_every=-1, **dict.fromkeys(flags, -1))
    assert off.recipe.num_iterations == off.recipe.target_flops == "auto"
    assert off.recipe.tokens_per_step == "auto"
    execution = off.execution
    assert execution.eval_every == execution.sample_every == execution.core_metric_every == -1
    assert execution.checkpoint_every == Execution().checkpoint_every
    assert parse("pretrain", "--num-iterations", "-1")["num_iterations"] == -1


def test_nothing_given_is_what_the_reference_does(environ: dict[str, str]) -> None:
    plain = asked(environ)
    assert plain.recipe.depth == 20
    assert plain.recipe == type(plain.recipe)()
    assert plain.execution.sample_every == plain.execution.core_metric_every == 2_000
    assert plain.execution.tracker == "none"


def test_rates_reach_all_groups_that_share_them(environ: dict[str, str]) -> None:
    recipe = asked(environ, embedding_lr=0.2, scalar_lr=0.4, matrix_lr=0.01).recipe
    optimizer = recipe.optimizer
    assert (optimizer.wte.lr, optimizer.value_embeddings.lr) == (0.2, 0.1)
    assert (optimizer.x0.lr, optimizer.resid.lr) == (0.4, pytest.approx(0.004))
    assert optimizer.matrices.lr == 0.01


def test_a_given_horizon_replaces_that_of_a_preset(environ: dict[str, str]) -> None:
    assert asked(environ, preset="demo").recipe.num_iterations == 1_500
    given = asked(environ, preset="demo", target_param_data_ratio=8.0).recipe
    assert (given.num_iterations, given.target_param_data_ratio) == ("auto", 8.0)
    assert asked(environ, preset="demo", target_flops=-1.0).recipe.num_iterations == 1_500
    steps = asked(environ, target_param_data_ratio=-1.0, num_iterations=7).recipe
    assert steps.num_iterations == 7
    with pytest.raises(ConfigError, match="number of steps open"):
        asked(environ, target_param_data_ratio=-1.0)


def test_set_reaches_recipe_and_execution(environ: dict[str, str]) -> None:
    assignments = ["data.max_epochs=8", "pretrain.threads=2", "compile=false"]
    found = asked(environ, set=assignments)
    assert found.recipe.data.max_epochs == 8
    assert (found.execution.threads, found.execution.compile) == (2, False)
    with pytest.raises(ConfigError, match="a flag gives this"):
        asked(environ, set=["depth=3"], depth=4)
    with pytest.raises(UnknownNameError, match="depht"):
        asked(environ, set=["depht=3"])


@pytest.mark.parametrize(
    ("station", "values", "message"),
    [
        ("pretrain", {"depth": 0}, "pretrain.depth"),
        ("pretrain", {"fp8_recipe": "rowwise"}, "per tensor"),
        ("pretrain", {"eval_every": 0}, "pretrain.eval_every"),
        ("pretrain", {"preset": "dmeo"}, "did you mean demo"),
        ("pretrain", {"device_type": "tpu"}, "device"),
        ("pretrain", {"run": "mine", "tracker": "tensorboard"}, "tensorboard"),
        ("pretrain", {"num_iterations": 5, "target_flops": 1e9}, "both num_iterations"),
        ("sft", {"load_optimizer": 0}, "moments"),
        ("sft", {"mmlu_epochs": 3}, "mixture.parts"),
        ("sft", {"model_step": 400}, "last step"),
        ("rl", {"source": "mid"}, "model of sft"),
        ("rl", {"weight_decay": 0.1}, "decay"),
        ("chat_eval", {"temperature": 0.7}, "likeliest"),
        ("base_eval", {"hf_path": "gpt2"}, "nanochat trained"),
    ],
)
def test_a_mistake_is_refused_with_its_name(
    environ: dict[str, str], station: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(environ, station, **values)


def test_what_has_no_effect_is_said_once(environ: dict[str, str]) -> None:
    values = {"chatcore_every": 200, "eval_every": -1, "load_optimizer": 1, "gsm8k_epochs": 0}
    found = asked(environ, "sft", **values)
    (note,) = found.found.notes
    assert "nanochat eval chat" in note
    assert found.execution.eval_every == -1


def test_numbers_of_the_base_model_may_be_repeated_but_not_changed() -> None:
    flags = TABLES["sft"][1]
    base = {"model.sequence_len": 2048, "training.optimizer.matrices.lr": 0.02}
    check_inherited(translate(flags, {"max_seq_len": 2048, "matrix_lr": 0.02}), base)
    with pytest.raises(ConfigError, match="which has 2048"):
        check_inherited(translate(flags, {"max_seq_len": 1024}), base)


def test_the_environment_chooses_the_compute_dtype(environ: dict[str, str]) -> None:
    found = asked({**environ, "NANOCHAT_DTYPE": "float32"})
    assert found.recipe.compute_dtype == "float32"
    with pytest.raises(UnknownNameError, match="NANOCHAT_DTYPE"):
        asked({**environ, "NANOCHAT_DTYPE": "float8"})


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_a_named_run_is_tracked(environ: dict[str, str]) -> None:
    execution = asked(environ, run="mine").execution
    assert (execution.tracker, execution.tracker_run) == ("wandb", "mine")
    assert asked(environ, run="dummy").execution.tracker == "none"


@pytest.mark.e2e
def test_the_whole_path_loads_neither_prefect_nor_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from tests.by_hand.by_hand_app import app\n"
        "import flows.by_hand.launching, flows.scripts.entry\n"
        "arguments = ['train', 'pretrain', '--store', sys.argv[1], '--output', sys.argv[1]]\n"
        "result = CliRunner().invoke(app, arguments)\n"
        "assert result.exit_code == 2, result.output\n"
        "assert 'has no tokens' in result.output, result.output\n"
        "sys.exit(sorted({'prefect', 'torch'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
