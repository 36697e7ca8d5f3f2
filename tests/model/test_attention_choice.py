"""Which attention backend is taken, and what is remembered of the others."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nanochat_core.errors import ConfigError, UnknownNameError
from nanochat_core.model.attention import Backend
from nanochat_core.model.backends import choosing, trial, verdict_files
from nanochat_core.model.backends.choosing import Trials, choose_backend, fastest, try_all
from nanochat_core.model.backends.hardware import UnavailableError
from nanochat_core.model.backends.opening import OPENERS
from nanochat_core.model.backends.sdpa import attend_sdpa
from nanochat_core.model.backends.trial import Verdict, dense_attention
from nanochat_core.model.backends.verdict_files import (
    read_verdicts,
    verdict_file,
    verdict_key,
    write_verdicts,
)

CPU, FLOAT, HEAD_DIM = torch.device("cpu"), torch.float32, 16


def one_key_too_many(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
    return dense_attention(q, k, v, window=window + 1)


class Openers:
    """The table of backends for a test, where each of them counts how often it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.monkeypatch = monkeypatch

    def give(self, **backends: Backend | Exception) -> None:
        for name, backend in backends.items():
            self.monkeypatch.setitem(OPENERS, name, self._opener(name, backend))

    def _opener(self, name: str, backend: Backend | Exception) -> Callable[..., Backend]:
        def open_it(_: torch.device) -> Backend:
            self.opened.append(name)
            if isinstance(backend, Exception):
                raise backend
            return backend

        return open_it


@pytest.fixture
def openers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Openers]:
    """All four, none of which is there but SDPA; trials of a row of 40."""
    short = tuple(case._replace(length=40) for case in trial.CASES)
    monkeypatch.setattr(trial, "CASES", short)
    monkeypatch.setattr(trial, "CPU_LAYERS", short[:1])
    table = Openers(monkeypatch)
    missing = UnavailableError("not installed")
    table.give(fa3=missing, fa4=missing, flex=missing, sdpa=attend_sdpa)
    return table


def choose(wanted: str, folder: Path | None = None) -> choosing.Choice:
    return choose_backend(wanted, CPU, FLOAT, folder, head_dim=HEAD_DIM)


def automatic(folder: Path | None = None) -> choosing.Choice:
    """What `auto` does on a GPU, with the trials on the CPU."""
    return choosing._fastest(Trials(CPU, FLOAT, HEAD_DIM, folder))


# --- choosing


def test_on_a_cpu_auto_is_sdpa_at_once_and_nothing_is_tried(openers: Openers) -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        choice = choose_backend("auto", CPU, torch.bfloat16, Path("never"))
        seconds.append(time.perf_counter() - start)
    assert (choice.name, choice.verdicts) == ("sdpa", ())
    assert "device of type cpu" in choice.reason
    assert min(seconds) < 0.005
    assert openers.opened == []


def test_a_name_that_does_not_pass_is_an_error_with_its_reason_and_those_that_pass(
    openers: Openers,
) -> None:
    with pytest.raises(ConfigError, match=r"attention=fa3: not installed; use auto or sdpa$"):
        choose("fa3")
    openers.give(fa4=attend_sdpa)
    with pytest.raises(ConfigError, match=r"attention=fa3: not installed; use auto, fa4 or sdpa$"):
        choose("fa3")


def test_a_wrong_backend_that_was_asked_for_is_an_error_with_how_wrong_it_is(
    openers: Openers,
) -> None:
    openers.give(flex=one_key_too_many)
    with pytest.raises(ConfigError, match=r"attention=flex: wrong: off by 0\.\d+ .*use auto or"):
        choose("flex")


def test_a_wrong_backend_is_never_taken_however_fast_it_is(openers: Openers) -> None:
    openers.give(fa3=one_key_too_many, fa4=RuntimeError("broken"))
    choice = automatic()
    assert choice.name == "sdpa"
    reasons = {verdict.backend: verdict.reason for verdict in choice.verdicts}
    assert reasons["fa3"].startswith("wrong: off by")
    assert reasons["fa4"] == "RuntimeError: broken"
    for reason in reasons.values():
        assert reason in choice.reason


def test_a_name_that_passes_is_taken(openers: Openers) -> None:
    choice = choose("sdpa")
    assert choice.name == "sdpa"
    assert choice.reason.startswith("as asked for (off by")
    assert openers.opened == ["sdpa"]


def test_a_name_that_is_no_backend_is_refused_before_anything_is_tried(openers: Openers) -> None:
    with pytest.raises(UnknownNameError, match="'fa2' is no backend; use one of auto, fa3"):
        choose("fa2")
    assert openers.opened == []


def test_flex_is_tried_only_where_no_flash_kernel_passes(openers: Openers) -> None:
    openers.give(fa4=attend_sdpa)
    assert automatic().name in ("fa4", "sdpa")
    assert openers.opened == ["fa3", "fa4", "sdpa"]
    openers.opened.clear()
    openers.give(fa4=one_key_too_many)
    automatic()
    assert openers.opened == ["fa3", "fa4", "sdpa", "flex"]


def test_where_nothing_passes_the_error_lists_every_reason(openers: Openers) -> None:
    openers.give(sdpa=one_key_too_many)
    with pytest.raises(ConfigError, match=r"no attention backend passes.*fa3: not ins.*sdpa: wro"):
        automatic()


def test_the_quickest_that_passes_is_taken_and_a_tie_goes_by_order() -> None:
    def passing(**milliseconds: float) -> list[Verdict]:
        return [Verdict(name, True, 0.0, ms, "") for name, ms in milliseconds.items()]

    assert fastest(passing(sdpa=3.0, flex=2.0, fa4=1.5, fa3=2.5)) == "fa4"
    assert fastest(passing(sdpa=1.0, flex=1.02, fa4=1.04)) == "fa4"
    assert fastest(passing(sdpa=1.0, flex=1.02, fa4=1.06)) == "flex"
    wrong = Verdict("fa3", False, 1.0, None, "")
    assert fastest([wrong, *passing(sdpa=1.0)]) == "sdpa"
    assert fastest([wrong]) is None


# --- remembering


def test_a_verdict_is_kept_and_nothing_is_tried_twice(openers: Openers, tmp_path: Path) -> None:
    openers.give(fa3=attend_sdpa, fa4=one_key_too_many)
    first = automatic(tmp_path)
    assert openers.opened == ["fa3", "fa4", "sdpa"]
    assert automatic(tmp_path) == first
    with pytest.raises(ConfigError, match="fa4: wrong"):
        choose("fa4", tmp_path)
    assert openers.opened == ["fa3", "fa4", "sdpa", "flex"]  # for the list of those that pass


def test_what_was_missing_is_looked_for_again(openers: Openers, tmp_path: Path) -> None:
    assert automatic(tmp_path).name == "sdpa"
    openers.opened.clear()
    openers.give(fa3=attend_sdpa)
    verdicts = {verdict.backend: verdict for verdict in automatic(tmp_path).verdicts}
    assert verdicts["fa3"].passes
    assert openers.opened == ["fa3", "fa4"]


def test_the_doctor_measures_anew_and_leaves_what_it_found(
    openers: Openers, tmp_path: Path
) -> None:
    automatic(tmp_path)
    openers.opened.clear()
    verdicts = try_all(CPU, FLOAT, tmp_path, head_dim=HEAD_DIM)
    assert [verdict.backend for verdict in verdicts] == ["fa3", "fa4", "flex", "sdpa"]
    assert openers.opened == ["fa3", "fa4", "flex", "sdpa"]
    assert choose("sdpa", tmp_path).verdicts == (verdicts[3],)


def test_a_damaged_file_is_never_believed(tmp_path: Path) -> None:
    key = verdict_key(CPU, FLOAT, HEAD_DIM)
    verdict = Verdict("sdpa", True, 1.5e-7, 12.25, "off by little")
    write_verdicts(tmp_path, key, [verdict])
    path = verdict_file(tmp_path, key)
    whole = path.read_bytes()
    assert read_verdicts(tmp_path, key) == {"sdpa": verdict}
    refused = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 7
        path.write_bytes(damaged)
        found = read_verdicts(tmp_path, key)
        assert found in ({}, {"sdpa": verdict})  # blanks between values mean nothing
        refused += found == {}
    assert refused > len(whole) / 10
    for text in ("", "{}", "[]", "3", whole[: len(whole) // 2].decode()):
        path.write_text(text)
        assert read_verdicts(tmp_path, key) == {}


def test_a_damaged_file_is_measured_again_and_replaced(
    openers: Openers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choice = choose("sdpa", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace('"passes": true', '"passes": false'))
    assert choose("sdpa", tmp_path).name == choice.name
    assert openers.opened == ["sdpa", "sdpa"]
    assert "attention is tried again" in caplog.text
    choose("sdpa", tmp_path)
    assert openers.opened == ["sdpa", "sdpa"]


def test_verdicts_of_another_machine_are_not_believed(tmp_path: Path) -> None:
    key = verdict_key(CPU, FLOAT, HEAD_DIM)
    write_verdicts(tmp_path, key, [Verdict("sdpa", True, 0.0, 1.0, "")])
    for name in key:
        other = {**key, name: "another"}
        assert verdict_file(tmp_path, other) != verdict_file(tmp_path, key)
        assert read_verdicts(tmp_path, other) == {}
        verdict_file(tmp_path, other).write_bytes(verdict_file(tmp_path, key).read_bytes())
        assert read_verdicts(tmp_path, other) == {}


def test_the_key_holds_all_that_changes_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    key = verdict_key(CPU, FLOAT, HEAD_DIM)
    assert key["torch"] == torch.__version__
    assert set(key["packages"]) >= {"flash-attn-4", "flash-attn-3", "xformers", "kernels"}
    others = [verdict_key(CPU, torch.bfloat16, HEAD_DIM), verdict_key(CPU, FLOAT, 64)]
    monkeypatch.setattr(verdict_files, "_version", lambda package: "1.0")
    others.append(verdict_key(CPU, FLOAT, HEAD_DIM))
    monkeypatch.undo()
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    others.append(verdict_key(CPU, FLOAT, HEAD_DIM))
    monkeypatch.undo()
    assert len({json.dumps(k, sort_keys=True) for k in (key, *others)}) == 5
    assert verdict_key(CPU, FLOAT, HEAD_DIM) == key


def test_the_driver_is_named_by_its_own_file_or_else_by_its_tool(tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06\nGCC version:\n")
    assert verdict_files.driver_version(file).endswith("580.65.06")
    file.unlink()
    assert isinstance(verdict_files.driver_version(file), str)


def test_a_failure_that_may_pass_is_not_kept(tmp_path: Path) -> None:
    key = verdict_key(CPU, FLOAT, HEAD_DIM)
    lasting = Verdict("fa4", False, None, None, "RuntimeError: no kernel image")
    passing_by = replace(lasting, backend="fa3", is_lasting=False)
    write_verdicts(tmp_path, key, [lasting, passing_by])
    assert read_verdicts(tmp_path, key) == {"fa4": lasting}


def test_a_folder_that_cannot_be_written_costs_only_the_memory(
    openers: Openers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert choose("sdpa", file / "folder").name == "sdpa"
    assert "not kept" in caplog.text
    assert list(tmp_path.iterdir()) == [file]
