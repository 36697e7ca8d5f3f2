"""The reinforcement learning job in this process: what it makes, refuses, and resumes."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from job_tools import MODEL_FILES
from rl_tools import RL, make_chat_model, rl_spec

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import BatchSizeError, ConfigError, JobStoppedError
from nanochat_core.inference.loading import load_model
from nanochat_core.jobs import rl
from nanochat_core.jobs.common import StopRequest
from nanochat_core.training.recipes import RlRecipe


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_chat_model(tmp_path_factory.mktemp("chat"))


class StopAfterCalls(StopRequest):
    """A stop request that comes when it was asked about so many times: once a token and a step."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def __call__(self) -> bool:
        self.calls -= 1
        return self.calls <= 0


def learn(
    chat_model: dict[str, str],
    folder: Path,
    recipe: RlRecipe = RL,
    stop: StopRequest | None = None,
    **execution: Any,
) -> list[dict[str, Any]]:
    """Run the job; returns the lines of metrics.jsonl."""
    spec = rl_spec(chat_model, folder, recipe, **execution)
    rl.main(spec, Ranks.single(), stop or StopRequest())
    return metrics(folder)


def metrics(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "work" / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in line.items() if k not in ("train/dt", "total_training_time")}
        for line in lines
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "output" / name).read_bytes() for name in MODEL_FILES}


def test_rollouts_metrics_and_scores_of_a_run_agree(
    chat_model: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    lines = learn(chat_model, tmp_path)
    rewards = [line["rl/reward"] for line in lines if "rl/reward" in line]
    assert len(rewards) == RL.num_iterations
    table = pq.read_table(tmp_path / "output" / "rollouts.parquet").to_pylist()
    per_step = RL.questions_per_step * RL.samples_per_question
    assert [row["step"] for row in table] == [
        step for step in range(1, len(rewards) + 1) for _ in range(per_step)
    ]
    for step, reward in enumerate(rewards, start=1):
        own = [row for row in table if row["step"] == step]
        assert sum(row["reward"] for row in own) / per_step == pytest.approx(reward)
        assert sum(row["advantage"] for row in own) == pytest.approx(0)
        lengths = [row["num_prompt_tokens"] + row["num_tokens"] for row in own]
        (line,) = (x for x in lines if x["step"] == step and "rl/reward" in x)
        assert line["rl/sequence_length"] == pytest.approx(sum(lengths) / per_step)
    evaluated = [line for line in lines if "pass@1" in line]
    assert [line["step"] for line in evaluated] == [0, 3, 6]
    for line in evaluated:
        scores = [line[f"pass@{k}"] for k in range(1, RL.pass_at_k + 1)]
        assert scores == sorted(scores)
    outputs = json.loads((tmp_path / "output" / "outputs.json").read_bytes())
    assert outputs["metrics"]["rl/reward_start"] == pytest.approx(sum(rewards[:5]) / 5)
    assert outputs["metrics"]["pass@4"] == evaluated[-1]["pass@4"]
    assert outputs["files"]["rollouts.parquet"] == "record"


def test_a_model_that_learnt_says_what_it_was_made_from(
    chat_model: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    learn(chat_model, tmp_path, RL.model_copy(update={"num_iterations": 1}), eval_every=-1)
    config = json.loads((tmp_path / "output" / "config.json").read_bytes())
    before = json.loads((Path(chat_model["sft"]) / "config.json").read_bytes())
    assert {**config, **before} == config
    assert RlRecipe.model_validate(config["rl"]).num_iterations == 1


@pytest.mark.e2e
def test_what_is_rewarded_gets_likelier(
    chat_model: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    recipe = RL.model_copy(update={"problems": 4, "num_iterations": 40})
    lines = learn(chat_model, tmp_path, recipe, eval_every=-1)
    rewards = [line["rl/reward"] for line in lines]
    assert sum(rewards[-5:]) / 5 > 2 * sum(rewards[:5]) / 5


@pytest.mark.e2e
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_job_stopped_among_tokens_goes_on_to_the_same_files_and_metrics(
    chat_model: dict[str, str], tmp_path: Path, one_thread: None, dtype: str
) -> None:
    recipe = RL.model_copy(update={"compute_dtype": dtype})
    straight = learn(chat_model, tmp_path / "straight", recipe)
    for stops in itertools.count():
        try:
            # About two steps, or a step and an evaluation; at first not even one evaluation.
            stop = StopAfterCalls(35 if stops else 5)
            again = learn(chat_model, tmp_path / "stopped", recipe, stop)
            break
        except JobStoppedError:
            continue
    assert stops >= 4
    assert files(tmp_path / "stopped") == files(tmp_path / "straight")
    assert without_times(again) == without_times(straight)
    tables = [
        pq.read_table(tmp_path / name / "output" / "rollouts.parquet")
        for name in ("straight", "stopped")
    ]
    assert tables[0].equals(tables[1])


def test_float16_moves_the_weights_and_keeps_them_finite(
    chat_model: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    recipe = RL.model_copy(update={"compute_dtype": "float16"})
    learn(chat_model, tmp_path, recipe, eval_every=-1)
    before, _ = load_model(Path(chat_model["sft"]), "cpu", torch.float16)
    after, _ = load_model(tmp_path / "output", "cpu", torch.float16)
    for new in after.parameters():
        assert torch.isfinite(new).all()
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)


def test_questions_that_ranks_cannot_share_are_refused(
    chat_model: dict[str, str], tmp_path: Path
) -> None:
    ranks = Ranks(rank=0, world_size=3, local_rank=0, device=torch.device("cpu"))
    with pytest.raises(BatchSizeError, match="questions_per_step=4 is not a multiple of 3 ranks"):
        rl.main(rl_spec(chat_model, tmp_path), ranks, StopRequest())


def test_samples_that_do_not_make_whole_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"samples_per_question=12 .* use 8 samples"):
        RlRecipe(samples_per_question=12)
