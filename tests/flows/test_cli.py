"""The command line without a server: errors, exit codes, the store commands, imports."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.looking import resolve_model
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ArtifactNotFoundError, ConfigError


def command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def publish(
    store: ArtifactStore, folder: Path, station: str, file: str, **inputs: ArtifactRef
) -> ArtifactRef:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(station)
    request = Request(
        station=station,
        code_version=1,
        recipe={},
        inputs={name: ref.digest for name, ref in inputs.items()},
    )
    output = StageOutput(files={file: "result"})
    return store.publish(request, folder, output, input_refs=inputs, provenance={})


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """A store with a tokenizer and a chat model of a few bytes."""
    opened = ArtifactStore(str(tmp_path / "store"))
    words = publish(opened, tmp_path / "a", "tokenizer", "tokenizer.json")
    model = publish(opened, tmp_path / "b", "sft", "model.safetensors", tokenizer=words)
    opened.set_alias("latest", model)
    return opened


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "dmo"], 2, "did you mean demo"),
        (["run", "tiny", "--set", "sft.epoch=2"], 2, "did you mean epochs"),
        (["run", "tiny", "--set", "sft.epochs"], 2, "expected STATION.field=value"),
        (["run", "tiny", "--force", "nothing"], 2, "no station 'nothing'"),
        (["run", "tiny", "--depth", "0"], 2, "whole number"),
        (["run", "tiny", "--source", "/no/such/file"], 1, "/no/such/file"),
        (["run", "tiny", "--store", "/proc/nanochat"], 1, "/proc/nanochat"),
    ],
)
def test_bad_input_is_one_message_and_an_exit_code(
    arguments: list[str], code: int, message: str
) -> None:
    exit_code, output = command(*arguments)
    assert exit_code == code
    assert message in output
    assert output.startswith("error: ")
    assert "Traceback" not in output


def test_with_no_model_yet_chat_says_how_to_make_one(tmp_path: Path) -> None:
    code, output = command("chat", "--store", str(tmp_path / "none"))
    assert code == 1
    assert "nanochat run demo" in output


def test_a_model_is_found_with_its_tokenizer(store: ArtifactStore) -> None:
    model, tokenizer = resolve_model(store, "latest")
    assert (model / "model.safetensors").read_text() == "sft"
    assert (tokenizer / "tokenizer.json").read_text() == "tokenizer"


def test_what_is_no_model_cannot_chat(store: ArtifactStore) -> None:
    with pytest.raises(ConfigError, match="is no model"):
        resolve_model(store, store.list("tokenizer")[0].short)
    with pytest.raises(ArtifactNotFoundError, match="latest"):
        resolve_model(store, "lastest")


def test_artifacts_are_listed_and_shown(store: ArtifactStore) -> None:
    code, output = command("artifacts", "ls", "--store", store.url)
    assert code == 0
    lines = {line.split("/")[0]: line for line in output.splitlines()}
    assert set(lines) == {"tokenizer", "sft"}
    assert lines["sft"].endswith("latest")
    code, output = command("artifacts", "show", "latest", "--store", store.url)
    assert code == 0
    assert '"station": "sft"' in output


def test_damage_is_found_and_told_by_the_exit_code(store: ArtifactStore) -> None:
    assert command("artifacts", "verify", "--store", store.url)[0] == 0
    path = resolve_model(store, "latest")[0] / "model.safetensors"
    path.chmod(0o644)
    path.write_text("SFT")
    code, output = command("artifacts", "verify", "--store", store.url)
    assert code == 1
    assert "model.safetensors" in output


def loads(module: str, *unwanted: str) -> int:
    script = f"import sys, {module}; sys.exit(bool({set(unwanted)!r} & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", script], check=False).returncode


def test_help_needs_no_heavy_import() -> None:
    assert loads("flows.cli", "prefect", "torch", "numpy", "pyarrow", "pydantic") == 0


def test_parameters_are_checked_without_prefect() -> None:
    assert loads("flows.parameters, flows.terminal, flows.looking", "prefect", "torch") == 0
