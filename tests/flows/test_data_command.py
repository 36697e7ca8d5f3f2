"""`nanochat data`: what its help says, and that saying it loads nothing heavy."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from flows.cli import examples, told
from flows.data_command import COMMANDS, data_app

APP = data_app(told, examples)
NAMES = [name for name, _, _ in COMMANDS]


def command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(APP, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("arguments", [[], *([name] for name in NAMES)])
def test_help_ends_with_examples_that_fit_a_terminal(arguments: list[str]) -> None:
    code, output = command(*arguments, "--help")
    assert code == 0
    _, _, shown = output.partition("Examples:\n")
    assert shown.strip().startswith("nanochat data ")
    assert [line for line in output.splitlines() if len(line) > 80] == []


def test_help_lists_every_command() -> None:
    _, output = command("--help")
    assert set(NAMES) == {"preview", "check", "identity", "fetch"}
    for name in NAMES:
        assert f"  {name} " in output


def test_help_loads_nothing_heavy() -> None:
    # What takes long; the rest of the 0.3 s is typer's.
    heavy = {"prefect", "torch", "numpy", "pyarrow", "pydantic", "httpx", "rich", "fsspec"}
    script = f"import sys, flows.data_command; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert done.stdout.decode().strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["identity", "--endpoint", "http://x/v1"], "--endpoint needs --endpoint-model"),
        (["identity", "--endpoint-model", "x"], "need --endpoint URL"),
        (["identity", "--output", "/"], "is a folder"),
        (["identity", "--output", "/proc/none/a.jsonl"], "give another --output"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str) -> None:
    code, output = command(*arguments)
    assert code == 2
    assert output.startswith("error: ")
    assert message in output
