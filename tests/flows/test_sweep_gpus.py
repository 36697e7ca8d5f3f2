"""Which GPUs belong to which of several points that are made side by side."""

from pathlib import Path
from typing import Any

import pytest

from flows.parameters import ResolvedRun, check, parse_parameters
from flows.sweeps.gpus import gpus_of_jobs, visible_gpus
from nanochat_core.errors import ConfigError


def run(**overrides: Any) -> ResolvedRun:
    named = {f"pretrain.{name}": value for name, value in overrides.items()}
    return check(parse_parameters({"preset": "tiny", "overrides": named}), {})


def test_gpus_are_those_of_the_variable_or_else_all_of_the_machine(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ("0", "2", "10")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-5f"}, tmp_path) == ("3", "GPU-5f")


@pytest.mark.parametrize(
    ("value", "names"), [("", ()), (" ", ()), ("-1", ()), ("0,-1,2", ("0",)), ("1,", ("1",))]
)
def test_what_the_variable_hides_is_not_there(
    tmp_path: Path, value: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia0").touch()
    hidden = {"CUDA_VISIBLE_DEVICES": value}
    assert visible_gpus(hidden, tmp_path) == names
    monkeypatch.setattr("flows.sweeps.gpus.has_gpu", lambda: True)
    if not names:
        assert gpus_of_jobs([run()], 2, hidden) == [(), ()], "on the CPU, as each job will find"


def test_each_point_has_as_many_gpus_as_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.sweeps.gpus.has_gpu", lambda: True)
    four = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert gpus_of_jobs([run()], 2, four) == [("0",), ("1",)]
    assert gpus_of_jobs([run(), run(ranks=2)], 2, four) == [("0", "1"), ("2", "3")]
    with pytest.raises(ConfigError, match=r"need 6, and this machine shows 4 .*use --jobs 2"):
        gpus_of_jobs([run(ranks=2)], 3, four)


def test_without_gpus_points_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.sweeps.gpus.has_gpu", lambda: False)
    assert gpus_of_jobs([run()], 3, {}) == [(), (), ()]


def test_points_of_several_machines_are_made_one_at_a_time() -> None:
    place = {"nodes": 2, "rendezvous_endpoint": "host:1", "rendezvous_id": "a"}
    with pytest.raises(ConfigError, match="use --jobs 1"):
        gpus_of_jobs([run(**place)], 2, {})


def test_processes_share_no_store_in_memory() -> None:
    resolved = check(parse_parameters({"preset": "tiny", "store": "memory://a"}), {})
    with pytest.raises(ConfigError, match=r"a store in memory is of one process; use --jobs 1"):
        gpus_of_jobs([resolved], 2, {})
