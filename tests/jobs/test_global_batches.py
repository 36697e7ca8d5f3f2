"""Which rows a step trains on: the same at any number of ranks, and for any longer run."""

from pathlib import Path

import pytest
import torch
from job_tools import PRETRAIN, make_spec

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import BatchSizeError, ConfigError
from nanochat_core.jobs.pretrain import open_batches
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.dial import plan_training
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.step import MicroBatch
from tests.inference.scripted import byte_tokenizer

RECIPE = PRETRAIN.model_copy(update={"tokens_per_step": 16 * 64})


def global_batches(
    line: dict[str, str],
    folder: Path,
    steps: int,
    *,
    recipe: PretrainRecipe = RECIPE,
    world_size: int = 1,
    device_batch_size: int = 2,
) -> list[list[MicroBatch]]:
    """Micro-batches of all ranks by step, in the order of ranks and passes."""
    plan = plan_training(recipe, Tokenizer.load(Path(line["tokenizer"])).vocab_size)
    spec = make_spec(recipe, line, folder, station="pretrain", device_batch_size=device_batch_size)
    worlds = [Ranks(r, world_size, r, torch.device("cpu")) for r in range(world_size)]
    readers = [open_batches(spec, recipe, plan, ranks) for ranks in worlds]
    return [[batch for read in readers for batch in read(step)] for step in range(steps)]


def assert_equal(left: list[list[MicroBatch]], right: list[list[MicroBatch]]) -> None:
    for step_left, step_right in zip(left, right, strict=True):
        for a, b in zip(step_left, step_right, strict=True):
            assert torch.equal(a.inputs_BT, b.inputs_BT)
            assert torch.equal(a.targets_BT, b.targets_BT)
            assert a.loss_weight == b.loss_weight


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_global_batches_are_those_of_one_rank(
    line: dict[str, str], tmp_path: Path, world_size: int
) -> None:
    one = global_batches(line, tmp_path, steps=10)
    assert_equal(one, global_batches(line, tmp_path, steps=10, world_size=world_size))


def test_the_rows_of_a_step_do_not_depend_on_the_device_batch(
    line: dict[str, str], tmp_path: Path
) -> None:
    small, large = (
        global_batches(line, tmp_path, steps=10, device_batch_size=size) for size in (2, 16)
    )
    for pieces, (whole,) in zip(small, large, strict=True):
        assert torch.equal(torch.cat([piece.inputs_BT for piece in pieces]), whole.inputs_BT)
        assert torch.equal(torch.cat([piece.targets_BT for piece in pieces]), whole.targets_BT)


def test_a_step_weighs_every_micro_batch_alike_and_sums_to_its_mean_loss(
    line: dict[str, str], tmp_path: Path
) -> None:
    for step in global_batches(line, tmp_path, steps=3, world_size=4):
        shares = [b.loss_weight * int((b.targets_BT >= 0).sum()) for b in step]
        assert shares == pytest.approx([1 / len(step)] * len(step))


def test_twice_the_horizon_sees_the_same_first_half(line: dict[str, str], tmp_path: Path) -> None:
    longer = RECIPE.model_copy(update={"num_iterations": 20})
    whole = global_batches(line, tmp_path, steps=20, recipe=longer)
    assert_equal(global_batches(line, tmp_path, steps=10), whole[:10])
    rows = torch.cat([batch.inputs_BT for step in whole for batch in step])
    assert len(torch.unique(rows, dim=0)) == 20 * 16, "a row came twice in one epoch"


def test_what_cannot_be_read_is_refused_before_the_first_step(
    line: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(BatchSizeError, match="device_batch_size 3 x 2 ranks"):
        global_batches(line, tmp_path, steps=0, world_size=2, device_batch_size=3)
    byte_tokenizer().save(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"tokenizer of 320 tokens, but .*other has 265"):
        global_batches({**line, "tokenizer": str(tmp_path / "other")}, tmp_path, steps=0)
    endless = RECIPE.model_copy(update={"num_iterations": 10_000})
    with pytest.raises(ConfigError, match="max_epochs"):
        global_batches(line, tmp_path, steps=0, recipe=endless)
