"""Pretraining from a shared beginning: the very files of a run that started at step 0."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_tools import SECONDS_ALLOWED, make_spec, results, run_ranks
from trunk_tools import (
    FREE,
    StopAfter,
    horizon,
    metrics,
    shared_steps,
    started_at,
    train,
    train_trunk,
)

from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.config.job import METRICS_FILE, OUTPUTS_FILE, JobSpec, StageOutput
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import JobStoppedError
from nanochat_core.jobs.pretrain import open_trunk
from nanochat_core.jobs.training_run import CHECKPOINTS
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.dial import plan_training
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.trunk import STATE_FILE, TRUNK_INPUT, shared_beginnings

BRANCH = horizon(5)


@pytest.fixture(scope="module")
def alone(line: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Five steps, made without sharing."""
    return results(train(BRANCH, line, tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module")
def trunk(line: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first four of them."""
    return train_trunk(BRANCH, 4, line, tmp_path_factory.mktemp("trunk"))


def test_a_branch_equals_the_run_made_without_sharing(
    line: dict[str, str], trunk: str, alone: dict[str, bytes], tmp_path: Path
) -> None:
    branch = train(BRANCH, line, tmp_path, trunk=trunk)
    assert (started_at(branch), shared_steps(branch)) == (4, 4)
    assert results(branch) == alone


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_so_it_does_in_other_dtypes(line: dict[str, str], tmp_path: Path, dtype: str) -> None:
    recipe = horizon(5, compute_dtype=dtype)
    own = results(train(recipe, line, tmp_path / "alone"))
    trunk = train_trunk(recipe, 4, line, tmp_path / "trunk")
    branch = train(recipe, line, tmp_path / "branch", trunk=trunk)
    assert shared_steps(branch) == 4
    assert results(branch) == own


@pytest.mark.e2e
def test_horizons_of_two_three_and_four_take_less_than_three_fifths_of_the_steps(
    line: dict[str, str], tmp_path: Path
) -> None:
    horizons = (10, 15, 20)
    recipes = [horizon(n) for n in horizons]
    beginnings = shared_beginnings(list(zip(recipes, horizons, strict=True)))
    assert [each.steps for each in beginnings] == [8, 12]
    longest, steps_run = "", 0
    trunks: dict[int, str] = {}
    for each in beginnings:
        spec = train(each.recipe, line, tmp_path / f"trunk-{each.steps}", trunk=longest)
        longest, steps_run = spec.output_folder, steps_run + each.steps - started_at(spec)
        trunks |= dict.fromkeys(each.users, longest)
    for place, (recipe, n) in enumerate(zip(recipes, horizons, strict=True)):
        branch = train(recipe, line, tmp_path / f"branch-{n}", trunk=trunks[place])
        steps_run += n - started_at(branch)
        assert results(branch) == results(train(recipe, line, tmp_path / f"alone-{n}"))
    assert steps_run <= 0.6 * sum(horizons), steps_run


def test_the_metrics_of_a_branch_begin_with_those_of_the_trunk(
    line: dict[str, str], trunk: str, tmp_path: Path
) -> None:
    own = train(BRANCH, line, tmp_path / "alone", eval_every=4)
    branch = train(BRANCH, line, tmp_path / "branch", trunk=trunk, eval_every=4)
    lines = metrics(branch.output_folder)
    assert lines[:4] == metrics(trunk)
    # The trunk had looked at no validation rows, so what was due at its last step is made up for.
    assert "val/bpb" in lines[4]
    assert lines == metrics(own.output_folder)
    numbers = StageOutput.load(Path(branch.output_folder)).metrics
    assert numbers["steps"] == 5
    assert numbers["train/loss"] == StageOutput.load(Path(own.output_folder)).metrics["train/loss"]


def test_a_branch_that_was_stopped_goes_on_without_its_trunk(
    line: dict[str, str], trunk: str, tmp_path: Path
) -> None:
    recipe = horizon(8, schedule=FREE.model_copy(update={"warmdown_fraction": 0.5}))
    with pytest.raises(JobStoppedError):
        train(recipe, line, tmp_path / "branch", trunk=trunk, stop=StopAfter(2))
    branch = train(recipe, line, tmp_path / "branch", trunk=str(tmp_path / "gone"))
    assert (started_at(branch), shared_steps(branch)) == (6, 4)
    assert results(branch) == results(train(recipe, line, tmp_path / "alone"))


def test_a_run_that_is_all_trunk_but_for_its_recipe_trains_no_step(
    line: dict[str, str], trunk: str, tmp_path: Path
) -> None:
    schedule = FREE.model_copy(update={"warmdown_fraction": 0.0, "final_lr_fraction": 0.5})
    recipe = horizon(4, schedule=schedule)
    branch = train(recipe, line, tmp_path / "branch", trunk=trunk)
    assert started_at(branch) == 4
    assert results(branch) == results(train(recipe, line, tmp_path / "alone"))


def copied(trunk: str, folder: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(trunk, folder)
    return folder


def lose_state(trunk: Path) -> None:
    (trunk / STATE_FILE).unlink()


def flip_state(trunk: Path) -> None:
    data = (trunk / STATE_FILE).read_bytes()
    (trunk / STATE_FILE).write_bytes(data.replace(b'"step":4', b'"step":3'))


def lose_weights(trunk: Path) -> None:
    (trunk / "model.safetensors").unlink()


def cut_moments(trunk: Path) -> None:
    data = (trunk / "optimizer.safetensors").read_bytes()
    (trunk / "optimizer.safetensors").write_bytes(data[:-100])


def lose_config(trunk: Path) -> None:
    (trunk / "config.json").unlink()


def change_setting(trunk: Path, name: str, value: object) -> None:
    body = unseal((trunk / STATE_FILE).read_bytes(), "")
    assert body["settings"][name] != value
    settings = {**body["settings"], name: value}
    (trunk / STATE_FILE).write_bytes(seal({**body, "settings": settings}))


def other_dtype(trunk: Path) -> None:
    change_setting(trunk, "compute_dtype", "torch.float32")


def other_attention(trunk: Path) -> None:
    change_setting(trunk, "attention", "fa3")


def other_rows(trunk: Path) -> None:
    change_setting(trunk, "device_batch_size", 4)


def is_opened(
    recipe: PretrainRecipe,
    line: dict[str, str],
    trunk: str | Path,
    folder: Path,
    **execution: Any,
) -> bool:
    """Whether a run takes a folder for its beginning."""
    tokenizer = Tokenizer.load(Path(line["tokenizer"]))
    inputs = {**line, TRUNK_INPUT: str(trunk)}
    spec = make_spec(recipe, inputs, folder, station="pretrain", **execution)
    plan = plan_training(recipe, tokenizer.vocab_size)
    return open_trunk(spec, recipe, plan, tokenizer, Ranks.single()) is not None


@pytest.mark.parametrize("damage", [lose_state, flip_state, lose_config])
def test_what_does_not_say_whose_state_it_is_cannot_be_used(
    line: dict[str, str], trunk: str, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    broken = copied(trunk, tmp_path / "trunk")
    assert is_opened(BRANCH, line, broken, tmp_path)
    damage(broken)
    assert not is_opened(BRANCH, line, broken, tmp_path)


@pytest.mark.parametrize(
    "damage", [lose_weights, cut_moments, other_dtype, other_attention, other_rows]
)
def test_with_a_trunk_that_cannot_be_used_a_run_starts_at_step_0(
    line: dict[str, str],
    trunk: str,
    alone: dict[str, bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    broken = copied(trunk, tmp_path / "trunk")
    damage(broken)
    with caplog.at_level(logging.WARNING):
        branch = train(BRANCH, line, tmp_path / "branch", trunk=str(broken))
    assert "training starts at step 0" in caplog.text
    assert (started_at(branch), shared_steps(branch)) == (0, 0)
    assert results(branch) == alone


@pytest.mark.parametrize(
    "execution",
    [{"reduction": "fast"}, {"threads": 2}, {"activation_checkpointing": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_trunk_that_ran_otherwise_than_this_run_is_not_used(
    line: dict[str, str], trunk: str, tmp_path: Path, execution: dict[str, Any]
) -> None:
    assert is_opened(BRANCH, line, trunk, tmp_path)
    assert not is_opened(BRANCH, line, trunk, tmp_path, **execution)


@pytest.mark.parametrize(("name", "value"), [("device", "cuda"), ("compile", "blocks")])
def test_so_is_one_of_another_device_or_compiled(
    line: dict[str, str], trunk: str, tmp_path: Path, name: str, value: str
) -> None:
    other = copied(trunk, tmp_path / "trunk")
    change_setting(other, name, value)
    assert not is_opened(BRANCH, line, other, tmp_path)


def test_a_run_that_may_choose_takes_micro_batches_as_large_as_its_trunk(
    line: dict[str, str], trunk: str, alone: dict[str, bytes], tmp_path: Path
) -> None:
    branch = train(BRANCH, line, tmp_path / "branch", trunk=trunk, device_batch_size="auto")
    assert started_at(branch) == 4
    assert results(branch) == alone
    told = StageOutput.load(Path(branch.output_folder)).provenance
    assert told["device_batch_size"] == 2
    own = train(BRANCH, line, tmp_path / "own", device_batch_size="auto")
    assert StageOutput.load(Path(own.output_folder)).provenance["device_batch_size"] != 2


@pytest.mark.parametrize(
    "recipe",
    [
        horizon(5, seed=1),
        horizon(4),
        horizon(5, schedule=FREE.model_copy(update={"cosine_weight_decay": True})),
        horizon(5, schedule=FREE.model_copy(update={"warmup_steps": 3})),
    ],
    ids=["seed", "too short", "cosine", "warm-up"],
)
def test_a_trunk_of_another_run_is_not_used(
    line: dict[str, str], trunk: str, tmp_path: Path, recipe: PretrainRecipe
) -> None:
    assert is_opened(BRANCH, line, trunk, tmp_path)
    assert not is_opened(recipe, line, trunk, tmp_path)


def kill_after(spec: JobSpec, num_lines: int) -> None:
    """Start the job, and kill it with SIGKILL once it has written so many lines of metrics."""
    path = Path(spec.work_folder) / "job.json"
    spec.save(path)
    metrics_path = Path(spec.work_folder) / METRICS_FILE
    metrics_path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "nanochat_core.jobs.pretrain", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + SECONDS_ALLOWED
    while not metrics_path.exists() or metrics_path.read_bytes().count(b"\n") < num_lines:
        assert process.poll() is None, "it has ended by itself"
        assert time.monotonic() < deadline, f"line {num_lines} did not come"
        time.sleep(0.002)
    process.kill()
    assert process.wait(SECONDS_ALLOWED) == -signal.SIGKILL


@pytest.mark.e2e
def test_a_branch_that_was_killed_goes_on_from_the_trunk_and_then_from_its_own_checkpoint(
    line: dict[str, str], trunk: str, tmp_path: Path
) -> None:
    schedule = FREE.model_copy(update={"warmdown_fraction": 0.9})
    recipe = horizon(40, schedule=schedule)
    inputs = {**line, TRUNK_INPUT: trunk}
    spec = make_spec(recipe, inputs, tmp_path, station="pretrain", checkpoint_every=15)
    kill_after(spec, 7)
    assert list((tmp_path / "work" / CHECKPOINTS).glob("*/manifest.json")) == []
    kill_after(spec, 22)
    branch = train(recipe, line, tmp_path, trunk=trunk)
    assert shared_steps(branch) == 4
    assert started_at(branch) >= 15
    assert [line["step"] for line in metrics(branch.output_folder)] == list(range(1, 41))
    assert results(branch) == results(train(recipe, line, tmp_path / "alone"))


@pytest.mark.distributed
def test_two_ranks_go_on_from_the_trunk_of_one_to_the_same_bits(
    line: dict[str, str], trunk: str, alone: dict[str, bytes], tmp_path: Path
) -> None:
    inputs = {**line, TRUNK_INPUT: trunk}
    spec = make_spec(BRANCH, inputs, tmp_path, station="pretrain", ranks=2)
    process = run_ranks(spec)
    assert process.returncode == 0, process.stderr[-3000:]
    assert started_at(spec) == 4
    assert results(spec) == alone
    told = json.loads((tmp_path / "output" / OUTPUTS_FILE).read_bytes())
    assert told["files"][STATE_FILE] == "record"
