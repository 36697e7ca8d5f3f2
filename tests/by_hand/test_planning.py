"""Plans of commands by hand: what tells one run from another, and what is refused early."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.by_hand.asking import Asked, Request, ask, fit_batch
from flows.by_hand.commands import TABLES
from flows.by_hand.planning import Planned, plan_rl
from flows.scripts.entry import ranks_here
from nanochat_core.errors import BatchSizeError, CheckpointError, ConfigError
from nanochat_core.training.dial import plan_training
from nanochat_core.training.recipes import PretrainRecipe


def make_chat_model(folder: Path, *, with_plan: bool) -> Path:
    plan = plan_training(PretrainRecipe(depth=2, sequence_len=64), 512)
    config: dict[str, Any] = {"model": plan.model.model_dump(mode="json")}
    if with_plan:
        config["plan"] = plan.model_dump(mode="json")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def plan(root: Path, model: Path, task: str) -> Planned:
    """What `train rl` with files of benchmarks at hand stands for."""
    data = root / "data"
    data.mkdir(exist_ok=True)
    values = {
        "checkpoint": str(model),
        "data": str(data),
        "set": [f"task={task}", "compile=false"],
    }
    return plan_rl(Request("rl", TABLES["rl"][1], values, {"NANOCHAT_BASE_DIR": str(root)}))


def test_files_that_are_not_read_do_not_tell_runs_apart(tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "model", with_plan=True)
    assert "benchmarks" not in plan(tmp_path, model, "sums").record.inputs
    assert "benchmarks" in plan(tmp_path, model, "gsm8k").record.inputs


def test_a_model_that_does_not_say_how_it_was_trained_is_refused(tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "model", with_plan=False)
    with pytest.raises(CheckpointError, match="does not say how the model was trained"):
        plan(tmp_path, model, "sums")


def test_several_machines_are_refused_instead_of_waited_for() -> None:
    assert ranks_here({}) is None
    assert ranks_here({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}) == 2
    with pytest.raises(ConfigError, match="one machine"):
        ranks_here({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})


def asked_pretrain(root: Path, **values: Any) -> Asked:
    """What `train pretrain` with these flags stands for."""
    given = {"set": ["compile=false"], **values}
    environ = {"NANOCHAT_BASE_DIR": str(root)}
    return ask(Request("pretrain", TABLES["pretrain"][1], given, environ))


def test_a_batch_that_nobody_gave_is_chosen_by_the_job(tmp_path: Path) -> None:
    asked = asked_pretrain(tmp_path)
    assert fit_batch(asked, 6).device_batch_size == "auto"
    three = asked_pretrain(tmp_path, nproc_per_node=4)
    with pytest.raises(BatchSizeError, match=r"6 rows cannot be shared .* 4 ranks"):
        fit_batch(three, 6)


def test_the_batch_of_a_preset_shrinks_to_fit_the_step_and_a_given_one_does_not(
    tmp_path: Path,
) -> None:
    asked = asked_pretrain(tmp_path, preset="tiny")
    assert asked.execution.device_batch_size == 4
    assert fit_batch(asked, 6).device_batch_size == 2
    given = asked_pretrain(tmp_path, preset="tiny", device_batch_size=4)
    with pytest.raises(BatchSizeError, match="device_batch_size 4 x 1 ranks"):
        fit_batch(given, 6)
