"""Looking while training: in-context scores and samples, which change nothing of the model."""

import json
import logging
from pathlib import Path

import pytest
import torch

from nanochat_core.config.job import METRICS_FILE
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import DataError, JobStoppedError
from nanochat_core.evals.bundle import OFFICIAL_TASKS
from nanochat_core.evals.looks import TrainingLooks
from nanochat_core.jobs import pretrain
from nanochat_core.jobs.common import StopRequest
from nanochat_core.jobs.in_training import forward_rows
from nanochat_core.model.config import ModelConfig
from tests.evals.eval_tools import choice_rows, write_bundle
from tests.jobs.job_tools import BASE_FILES, PRETRAIN, make_line, make_spec, results

RECIPE = PRETRAIN.model_copy(update={"num_iterations": 4})


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_line(tmp_path_factory.mktemp("line"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def train(
    inputs: dict[str, str], folder: Path, stop: StopRequest | None = None, **execution: int
) -> dict[str, bytes]:
    spec = make_spec(RECIPE, inputs, folder, station="pretrain", **execution)
    TrainingLooks(max_per_task=6, prompts=("ka lo",), sample_tokens=3).save(folder / "work")
    pretrain.main(spec, Ranks.single(), stop or StopRequest())
    return results(spec, BASE_FILES)


def logged(folder: Path, name: str) -> dict[int, float]:
    text = (folder / "work" / METRICS_FILE).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return {values["step"]: values[name] for values in lines if name in values}


def official_bundle(folder: Path) -> str:
    """The 22 labels, with made-up rows."""
    tasks = [
        {"label": label, "icl_task_type": "multiple_choice", "rows": choice_rows(3)}
        for label in sorted(OFFICIAL_TASKS)
    ]
    write_bundle(folder, tasks)
    return str(folder)


def test_looking_changes_no_bit_of_the_model(
    line: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = train(line, tmp_path / "plain")
    generator = torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        looked = train(line, tmp_path / "looked", core_metric_every=2, sample_every=2)
    assert looked == plain
    assert torch.equal(torch.get_rng_state(), generator)
    assert logged(tmp_path / "looked", "demo_score").keys() == {2, 4}
    assert not logged(tmp_path / "plain", "demo_score")
    samples = [record.message for record in caplog.records if "'ka lo' ->" in record.message]
    assert [text.split(":")[0] for text in samples] == ["step 2", "step 4"]


def test_passes_that_are_not_compiled_hold_a_bounded_number_of_logits() -> None:
    config = ModelConfig(n_layer=2, n_head=1, n_kv_head=1, n_embd=128)
    assert forward_rows(config, 32) == 8  # of 2,048 tokens and 32,768 logits each
    assert forward_rows(config, 4) == 4
    assert forward_rows(config.model_copy(update={"sequence_len": 2**15}), 4) == 1


def test_only_the_official_tasks_make_a_core_metric(line: dict[str, str], tmp_path: Path) -> None:
    inputs = {**line, "eval_bundle": official_bundle(tmp_path / "bundle")}
    train(inputs, tmp_path, core_metric_every=4)
    assert logged(tmp_path, "core_metric").keys() == {4}
    assert not logged(tmp_path, "demo_score")


def test_a_bad_task_is_refused_before_the_first_step(line: dict[str, str], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    few = {"label": "few", "icl_task_type": "multiple_choice", "num_fewshot": [9]}
    write_bundle(bundle, [{**few, "rows": choice_rows(3)}])
    with pytest.raises(DataError, match="few"):
        train({**line, "eval_bundle": str(bundle)}, tmp_path, core_metric_every=2)
    assert not (tmp_path / "work" / METRICS_FILE).exists()


def test_a_stop_between_tasks_is_saved(line: dict[str, str], tmp_path: Path) -> None:
    class StopsAtTasks(StopRequest):
        """Asked to stop while the first scores are taken: its second look."""

        looks = 0

        def __call__(self) -> bool:
            self.looks += 1
            return self.looks == 2

    with pytest.raises(JobStoppedError, match="step 2"):
        train(line, tmp_path, StopsAtTasks(), core_metric_every=2)
    assert [p.name[:13] for p in (tmp_path / "work" / "checkpoints").iterdir()] == ["step-00000002"]
    train(line, tmp_path, core_metric_every=2)
    assert logged(tmp_path, "demo_score").keys() == {2, 4}
