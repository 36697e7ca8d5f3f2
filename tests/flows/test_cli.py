"""The command line without a server: errors, exit codes, the store commands, imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.looking import flat, resolve_model
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ArtifactNotFoundError, CheckpointError


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
        (["run", "tiny", "--store", __file__], 1, "is a file. Give the path of a folder"),
        (["artifacts", "ls", "--store", __file__], 1, "is a file. Give the path of a folder"),
        (["artifacts", "gc", "--store", f"{__file__}/x"], 1, f"{__file__} is a file"),
        (["artifacts", "ls", "--store", "s3:/bucket/x"], 2, "write s3://bucket/x"),
        (["run", "tiny", "--store", "s3://"], 2, "write it as s3://bucket/prefix"),
        (["run", "tiny", "--store", "foo://x"], 2, "unknown protocol 'foo'"),
        (["run", "tiny", "--start-from", "sft", "--stop-after", "tokens"], 2, "--stop-after"),
        (["run", "tiny", "--set", "sft.seed=1", "--set", "sft.seed=2"], 2, "sft.seed twice"),
        (["chat", "-p", " ", "--store", "/nowhere"], 2, 'as in -p "Who are you?"'),
        (["artifacts", "ls", "stf", "--store", "/nowhere"], 2, "did you mean sft"),
        (["artifacts", "show", "x", "--store", "/nowhere"], 1, "the store /nowhere is empty"),
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
    with pytest.raises(CheckpointError, match="is no model"):
        resolve_model(store, store.list("tokenizer")[0].short)
    with pytest.raises(ArtifactNotFoundError, match="latest"):
        resolve_model(store, "lastest")


def test_artifacts_are_listed_and_shown(store: ArtifactStore) -> None:
    code, output = command("artifacts", "ls", "--store", store.url)
    assert code == 0
    title, *lines = output.splitlines()
    assert title.startswith("artifact ")
    by_station = {line.split("/")[0]: line for line in lines}
    assert set(by_station) == {"tokenizer", "sft"}
    assert by_station["sft"].endswith("latest")
    code, output = command("artifacts", "show", "latest", "--store", store.url)
    assert code == 0
    assert "from tokenizer  tokenizer/" in output
    code, output = command("artifacts", "show", "latest", "--json", "--store", store.url)
    assert json.loads(output)["station"] == "sft"


def test_what_is_not_there_yet_is_said_with_the_command_that_makes_it(store: ArtifactStore) -> None:
    for arguments in (["ls"], ["verify"], ["ls", "pretrain"]):
        code, output = command("artifacts", *arguments, "--store", "/nowhere")
        assert code == 0
        assert output.strip().endswith("make one with: nanochat run demo")
    assert "artifact of pretrain" in command("artifacts", "ls", "pretrain", "--store", store.url)[1]


def test_a_recipe_is_shown_by_the_names_that_set_takes() -> None:
    recipe = {"a": 1, "b": {"c": [1, 2], "d": [{"e": 2}, {"e": 3}]}, "f": {}, "g": []}
    expected = [("a", 1), ("b.c", [1, 2]), ("b.d.0.e", 2), ("b.d.1.e", 3), ("f", {}), ("g", [])]
    assert flat(recipe) == expected


@pytest.mark.parametrize(
    "arguments",
    [[], ["run"], ["chat"], ["artifacts"], *(["artifacts", name] for name in ("ls", "show"))],
)
def test_help_ends_with_examples_that_fit_a_terminal(arguments: list[str]) -> None:
    code, output = command(*arguments, "--help")
    assert code == 0
    _, _, examples = output.partition("Examples:\n")
    assert examples.strip().startswith("nanochat ")
    assert max(map(len, output.splitlines())) <= 80


def test_damage_is_found_and_told_by_the_exit_code(store: ArtifactStore) -> None:
    assert command("artifacts", "verify", "--store", store.url)[0] == 0
    path = resolve_model(store, "latest")[0] / "model.safetensors"
    path.chmod(0o644)
    path.write_text("SFT")
    code, output = command("artifacts", "verify", "--store", store.url)
    assert code == 1
    assert "model.safetensors" in output


def test_damage_that_was_made_good_counts_no_more(store: ArtifactStore, tmp_path: Path) -> None:
    path = resolve_model(store, "latest")[1] / "tokenizer.json"
    path.chmod(0o644)
    path.write_text("TOKENIZER")
    publish(store, tmp_path / "c", "tokenizer", "tokenizer.json")
    code, output = command("artifacts", "verify", "--store", store.url)
    assert code == 0
    assert "made anew since" in output
    assert (resolve_model(store, "latest")[1] / "tokenizer.json").read_text() == "tokenizer"


def test_a_damaged_name_of_the_model_is_told_as_such(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "store" / "aliases" / "latest.json").write_text("{}")
    code, output = command("chat", "--store", store.url)
    assert code == 1
    assert "aliases/latest.json is damaged" in output


def loads(module: str, *unwanted: str) -> int:
    script = f"import sys, {module}; sys.exit(bool({set(unwanted)!r} & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", script], check=False).returncode


def test_help_needs_no_heavy_import() -> None:
    assert loads("flows.cli", "prefect", "torch", "numpy", "pyarrow", "pydantic") == 0


def test_parameters_are_checked_without_prefect() -> None:
    assert loads("flows.parameters, flows.terminal, flows.looking", "prefect", "torch") == 0
