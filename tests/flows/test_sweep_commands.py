"""The commands and flows of sweeps: what they take, what their help teaches, what they import."""

import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import flows.sweeps
from flows.cli import app
from flows.parameters import RunParameters
from flows.sweeps.commands import COMMANDS
from flows.sweeps.parameters import COMMON, PARAMETERS

NAMES = [name for name, _, _ in COMMANDS]
LINE_ONLY = {"depth", "start_from", "stop_after", "force"}
"""Parameters of a run that a sweep has its own way with: what is made again is one run's matter."""


def command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("name", NAMES)
def test_help_ends_with_examples_that_fit_a_terminal(name: str) -> None:
    code, output = command("run", name, "--help")
    assert code == 0
    assert f"run {name} [OPTIONS]" in output
    _, _, examples = output.partition("Examples:\n")
    assert examples.strip().startswith(f"nanochat run {name} ")
    assert max(map(len, output.splitlines())) <= 80


def test_the_commands_are_found_from_the_help_of_run_and_of_nanochat() -> None:
    top, run = command("--help")[1], command("run", "--help")[1]
    for name in NAMES:
        assert f"run {name} " in top
        assert name in run
    assert command("run", "scaling_laws", "--help")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["miniseries"], "no depths given"),
        (["miniseries", "--depths", "1,x"], "expected numbers with commas, got 'x'"),
        (["miniseries", "--depths", "1.5"], "depths.0=1.5: expected a valid integer"),
        (["miniseries", "--depths", "1,2", "--preset", "tny"], "did you mean tiny"),
        (["scaling-laws", "--budgets", "1e9", "--depths", ""], "no depths given"),
        (["sweep"], "nothing is varied"),
        (["sweep", "--set", "pretrain.sed=1,2"], "point pretrain.sed=1: "),
        (["sweep", "--set", "pretrain.seed=1,,2"], "--set pretrain.seed=1,2"),
    ],
)
def test_a_mistake_is_one_message_before_anything_starts(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    code, output = command("run", *arguments, "--store", str(tmp_path / "store"))
    assert code == 2
    assert output.startswith("error: ")
    assert message in output
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("word", "meant"),
    [("minseries", "miniseries"), ("scaling_law", "scaling-laws"), ("sweeps", "sweep")],
)
def test_a_misspelt_kind_is_answered_with_the_right_one(word: str, meant: str) -> None:
    code, output = command("run", word, "--depths", "1")
    assert code == 2
    assert f"did you mean: nanochat run {meant}" in output
    assert "no preset 'tny'; did you mean tiny" in command("run", "tny")[1]


def test_the_price_is_said_to_be_of_one_point() -> None:
    for name in NAMES:
        assert "of what one point uses" in " ".join(command("run", name, "--help")[1].split())


def test_every_parameter_of_a_run_is_one_of_a_sweep_or_left_out_on_purpose() -> None:
    own = {"overrides"}
    assert {*COMMON} | own | LINE_ONLY == {*RunParameters.model_fields}
    for kind in PARAMETERS.values():
        assert {*COMMON} | own <= {*kind.model_fields}


def test_what_is_checked_before_a_sweep_starts_needs_neither_prefect_nor_torch() -> None:
    modules = "flows.sweeps.points, flows.sweeps.gpus, flows.sweeps.view, flows.sweeps.commands"
    script = f"import sys, {modules}; sys.exit(bool({{'prefect', 'torch'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.prefect
def test_no_module_of_sweeps_loads_torch() -> None:
    names = [module.name for module in pkgutil.iter_modules(flows.sweeps.__path__)]
    modules = ", ".join(f"flows.sweeps.{name}" for name in names)
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.prefect
def test_flows_take_their_parameters_by_name_with_help() -> None:
    from flows.sweeps.running import FLOWS

    assert {*FLOWS} == {*PARAMETERS}
    for kind, flow in FLOWS.items():
        schema: dict[str, Any] = flow.parameters.properties
        assert {*schema} == {*PARAMETERS[kind].model_fields}
        assert all(field["description"] for field in schema.values())
        assert flow.validate_parameters({"jobs": 2})["jobs"] == 2
