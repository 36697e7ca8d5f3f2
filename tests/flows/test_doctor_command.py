"""What `nanochat doctor` starts, read by the parser of the job that it starts."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from flows.doctor_command import DOCTOR_MODULE, doctor
from nanochat_core.jobs import doctor as job

app = typer.Typer()
app.command()(doctor)


class Started(Exception):
    """The process would be another one from here on."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    calls: list[Any] = []

    def execve(_program: str, command: list[str], environ: dict[str, str]) -> None:
        calls.append((command, environ))
        raise Started

    monkeypatch.setattr(os, "execve", execve)
    before = torch.get_num_threads()
    yield calls
    torch.set_num_threads(before)


def test_every_option_reaches_the_job(started: list[Any]) -> None:
    words = (
        "--device cpu --compute-dtype float16 --attention sdpa --fp8 --no-compile --ranks 3 "
        "--threads 2 --store /here --json"
    )
    assert isinstance(CliRunner().invoke(app, words.split()).exception, Started)
    ((command, environ),) = started
    assert command[1:3] == ["-m", DOCTOR_MODULE]
    setting, as_json = job.parse(command[3:], "")
    assert as_json
    assert str(setting) == (
        "device=cpu dtype=float16 attention=sdpa compile=false fp8=true ranks=3"
    )
    assert setting.store_url == "/here"
    assert (environ["OMP_NUM_THREADS"], torch.get_num_threads()) == ("2", 2)


def test_without_options_everything_is_automatic(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_STORE", "memory://there")
    assert isinstance(CliRunner().invoke(app, []).exception, Started)
    ((command, _),) = started
    setting, as_json = job.parse(command[3:], "")
    assert not as_json
    assert setting.compiles
    assert (setting.attention, setting.store_url) == ("auto", "memory://there")
