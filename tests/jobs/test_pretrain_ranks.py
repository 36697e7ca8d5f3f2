"""Pretraining and fine-tuning as torchrun runs them: the same files at any number of ranks."""

import json
import shutil
from pathlib import Path

import pytest
from job_tools import (
    BASE_FILES,
    MODEL_FILES,
    NUM_STEPS,
    PRETRAIN,
    SFT,
    make_spec,
    results,
    run_ranks,
)

from nanochat_core.config.job import ERROR_FILE, METRICS_FILE, OUTPUTS_FILE, JobSpec
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.jobs import pretrain, sft
from nanochat_core.jobs.common import StopRequest
from nanochat_core.jobs.training_run import CHECKPOINTS

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("pretrain_ranks")]

HALF_WAY = NUM_STEPS // 2


def pretrain_on(ranks: int, inputs: dict[str, str], folder: Path) -> JobSpec:
    """Train with torchrun, going on from what the work folder holds."""
    spec = make_spec(PRETRAIN, inputs, folder, station="pretrain", ranks=ranks)
    process = run_ranks(spec)
    assert process.returncode == 0, process.stderr[-3000:]
    return spec


@pytest.fixture(scope="module")
def two_ranks(line: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    """A whole run on two ranks, whose work folder has checkpoints of steps 5 and 10."""
    return pretrain_on(2, line, tmp_path_factory.mktemp("two"))


def half_way(run: JobSpec, folder: Path) -> Path:
    """A work folder as it was when the run had saved half of its steps."""
    work = folder / "work"
    shutil.copytree(run.work_folder, work)
    (last,) = (work / CHECKPOINTS).glob(f"step-{NUM_STEPS:08d}-*")
    shutil.rmtree(last)
    (left,) = (work / CHECKPOINTS).glob(f"step-{HALF_WAY:08d}-*")
    assert (left / "rank-001-of-002.safetensors").exists()
    return work


def assert_resumed(spec: JobSpec, run: JobSpec) -> None:
    """Steps before the checkpoint were not computed again: their lines were taken over."""
    own, taken = (
        (Path(s.work_folder) / METRICS_FILE).read_text().splitlines() for s in (spec, run)
    )
    assert len(own) == NUM_STEPS
    assert own[:HALF_WAY] == taken[:HALF_WAY]
    assert own[HALF_WAY:] != taken[HALF_WAY:], "times of other steps cannot be equal"


def test_one_two_and_four_ranks_make_the_same_artifact(
    base: dict[str, str], two_ranks: JobSpec, line: dict[str, str], tmp_path: Path
) -> None:
    one = {name: (Path(base["pretrain"]) / name).read_bytes() for name in BASE_FILES}
    assert results(two_ranks) == one
    assert results(pretrain_on(4, line, tmp_path)) == one


def test_a_run_of_two_ranks_goes_on_with_one_to_the_same_bits(
    two_ranks: JobSpec, line: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    half_way(two_ranks, tmp_path)
    spec = make_spec(PRETRAIN, line, tmp_path, station="pretrain")
    pretrain.main(spec, Ranks.single(), StopRequest())
    assert_resumed(spec, two_ranks)
    assert results(spec) == results(two_ranks)


def test_a_run_of_two_ranks_goes_on_with_four_to_the_same_bits(
    two_ranks: JobSpec, line: dict[str, str], tmp_path: Path
) -> None:
    half_way(two_ranks, tmp_path)
    spec = pretrain_on(4, line, tmp_path)
    assert_resumed(spec, two_ranks)
    assert results(spec) == results(two_ranks)


def test_fine_tuning_on_two_ranks_makes_the_files_of_one(
    base: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    one = make_spec(SFT, base, tmp_path / "one", station="sft")
    sft.main(one, Ranks.single(), StopRequest())
    two = make_spec(SFT, base, tmp_path / "two", station="sft", ranks=2)
    process = run_ranks(two)
    assert process.returncode == 0, process.stderr[-3000:]
    assert results(two, MODEL_FILES) == results(one, MODEL_FILES)


def test_a_batch_that_does_not_divide_is_told_in_error_json(
    line: dict[str, str], tmp_path: Path
) -> None:
    spec = make_spec(PRETRAIN, line, tmp_path, station="pretrain", device_batch_size=3)
    assert run_ranks(spec).returncode != 0
    error = json.loads((tmp_path / "work" / ERROR_FILE).read_bytes())
    assert error["type"] == "BatchSizeError"
    assert "device_batch_size 3 x 1 ranks" in error["message"]
    assert not (tmp_path / "output" / OUTPUTS_FILE).exists()
