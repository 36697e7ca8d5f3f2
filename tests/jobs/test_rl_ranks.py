"""Reinforcement learning as torchrun runs it: what two ranks make together."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from job_tools import run_ranks
from rl_tools import make_chat_model, rl_spec
from safetensors.torch import load_file

from nanochat_core.config.job import METRICS_FILE, JobSpec
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.jobs import rl
from nanochat_core.jobs.common import StopRequest

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("rl_ranks")]


def rollouts(spec: JobSpec) -> list[dict[str, object]]:
    """What the model said, as far as no rounding is in it."""
    table = pq.read_table(Path(spec.output_folder) / "rollouts.parquet")
    return table.drop_columns(["advantage"]).to_pylist()


def scores(spec: JobSpec) -> dict[int, list[float]]:
    lines = (Path(spec.work_folder) / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    evaluated = [line for line in map(json.loads, lines) if "pass@1" in line]
    return {
        line["step"]: [value for name, value in line.items() if name.startswith("pass@")]
        for line in evaluated
    }


def test_two_ranks_ask_and_learn_what_one_does(tmp_path: Path, one_thread: None) -> None:
    inputs = make_chat_model(tmp_path)
    one = rl_spec(inputs, tmp_path / "one")
    rl.main(one, Ranks.single(), StopRequest())
    two = rl_spec(inputs, tmp_path / "two", ranks=2)
    process = run_ranks(two)
    assert process.returncode == 0, process.stderr[-3000:]
    assert rollouts(two) == rollouts(one)
    assert scores(two).keys() == scores(one).keys()
    for step, expected in scores(one).items():
        assert scores(two)[step] == pytest.approx(expected)
    weights = [load_file(Path(s.output_folder) / "model.safetensors") for s in (one, two)]
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-5, name
