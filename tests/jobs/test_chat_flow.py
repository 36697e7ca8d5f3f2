"""`nanochat chat`: what the command hands to the job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from nanochat_core.errors import NanochatError
from nanochat_core.inference.named_models import ModelShelf
from nanochat_core.jobs.chat import ChatModels, parse_arguments, read_settings
from nanochat_core.jobs.chat_settings import ChatSettings
from tests.jobs.chat_tools import YES, save_by_hand


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base folder with a model that was made by hand, called `mine`."""
    save_by_hand(tmp_path / "by-hand", "mine", *YES)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have taken over this process."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: commands.append(command))
    return commands


def test_every_option_reaches_the_job(base: Path, started: list[list[str]]) -> None:
    options = ["--temperature", "0.1", "--top-k", "3", "--top-p", "0.5", "--max-tokens", "9"]
    options += [
        "--seed",
        "4",
        "--stop",
        "a",
        "--stop",
        "-b",
        "--system",
        "-Be brief.",
        "--device",
        "cpu",
    ]
    options += ["-p", "-x", "--json", "--no-history"]
    assert CliRunner().invoke(app, ["chat", "mine", *options]).exit_code == 0
    (command,) = started
    assert command[:3] == [sys.executable, "-m", "nanochat_core.jobs.chat"]
    job = parse_arguments(command[3:])
    assert read_settings(job) == ChatSettings(0.1, 3, 0.5, 9, 4, ("a", "-b"), "-Be brief.")
    assert (job.prompt, job.json, job.no_history, job.device) == ("-x", True, True, "cpu")
    assert (job.name, job.ref) == ("mine", "")
    assert (job.model / "config.json").is_file()
    assert (job.tokenizer / "tokenizer.json").is_file()
    assert ModelShelf(job.store, job.by_hand).find("sft/mine").model == job.model


@pytest.mark.parametrize("name", ["mine", "sft/mine", "FOLDER/mine"])
def test_the_defaults_are_the_jobs_own(base: Path, started: list[list[str]], name: str) -> None:
    name = name.replace("FOLDER", str(base / "by-hand" / "sft"))
    assert CliRunner().invoke(app, ["chat", name]).exit_code == 0
    job = parse_arguments(started[0][3:])
    assert read_settings(job) == ChatSettings()
    # A folder is called by its last part: its path is nobody's business in what is saved.
    assert job.name == (name if name == "sft/mine" else "mine")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mine", "-p", " "], 2, 'as in -p "Who are you?"'),
        (["mine", "--temperature", "-1"], 2, "temperature -1.0: give 0 (greedy) or more"),
        (["mine", "--top-p", "nan"], 2, "top_p nan: give more than 0"),
        (["mine", "--seed", "-1"], 2, "seed -1: give a whole number from 0"),
        (["yours"], 1, "'yours' names nothing"),
    ],
)
def test_a_mistake_is_said_before_anything_starts(
    base: Path, started: list[list[str]], arguments: list[str], code: int, words: str
) -> None:
    result = CliRunner().invoke(app, ["chat", *arguments])
    assert result.exit_code == code
    assert words in result.output
    assert started == []


@pytest.mark.parametrize("name", ["~nobody-has-this-name", "x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_does_not_end_the_chat(base: Path, name: str) -> None:
    models = ChatModels("cpu", ModelShelf(str(base / "store"), base / "by-hand"))
    with pytest.raises(NanochatError, match=r"no model|names nothing"):
        models.load(name)


@pytest.mark.e2e
def test_a_question_from_a_script_gets_its_answer(base: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "chat", "mine", "--json", "--temperature", "0"]
    ended = subprocess.run(command, input=b"Well?", capture_output=True, timeout=100, check=True)
    assert ended.stderr == b""
    values = json.loads(ended.stdout)
    assert (values["reply"], values["model"]) == ("yes", "mine")
