"""The fine-tuning job in this process: stopped, gone on, and fitted to its base model."""

import json
from pathlib import Path

import pytest
from job_tools import MODEL_FILES, PRETRAIN, SFT, make_spec, results

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import JobStoppedError
from nanochat_core.jobs import sft
from nanochat_core.jobs.common import StopRequest
from nanochat_core.training.recipes import SftRecipe


class StopAfter(StopRequest):
    """A stop request that comes after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def __call__(self) -> bool:
        self.steps -= 1
        return self.steps <= 0


def tune(base: dict[str, str], folder: Path, stop: StopRequest, recipe: SftRecipe = SFT):
    spec = make_spec(recipe, base, folder, station="sft", device_batch_size=8)
    sft.main(spec, Ranks.single(), stop)
    return spec


def test_a_stopped_fine_tuning_goes_on_to_the_same_bits(
    base: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    straight = tune(base, tmp_path / "straight", StopRequest())
    for steps in (1, 2):
        with pytest.raises(JobStoppedError, match="stopped on request"):
            tune(base, tmp_path / "stopped", StopAfter(steps))
    stopped = tune(base, tmp_path / "stopped", StopRequest())
    assert results(stopped, MODEL_FILES) == results(straight, MODEL_FILES)


def test_a_chat_model_says_what_it_was_made_from(
    base: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    spec = tune(base, tmp_path, StopRequest())
    config = json.loads((tmp_path / "output" / "config.json").read_bytes())
    base_config = json.loads((Path(base["pretrain"]) / "config.json").read_bytes())
    assert {**config, **base_config} == config
    assert config["sft"] == spec.recipe
    assert config["facts"]["depth"] == PRETRAIN.depth


def test_epochs_decide_the_steps(base: dict[str, str], tmp_path: Path, one_thread: None) -> None:
    by_epochs = SFT.model_copy(update={"num_iterations": "auto", "epochs": 2.0})
    tune(base, tmp_path, StopRequest(), by_epochs)
    outputs = json.loads((tmp_path / "output" / "outputs.json").read_bytes())
    lines = (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == outputs["metrics"]["steps"] >= 4
    assert json.loads(lines[0])["train/lrm"] == 1.0
    assert 0 < json.loads(lines[-1])["train/lrm"] < 0.3
