import math
from pathlib import Path

import pytest
import torch

from nanochat_core.errors import CheckpointError
from nanochat_core.optim.groups import StateShard
from nanochat_core.training.checkpoint_files import (
    best_checkpoint,
    checkpoint_folders,
    newest_checkpoint,
)
from nanochat_core.training.checkpoints import CheckpointWriter

IDENTITY = "recipe"


def new_writer(folder: Path, token: str = "0000000a", resumed_from: int = -1) -> CheckpointWriter:
    writer = CheckpointWriter(folder, identity=IDENTITY, token=token, keep=2)
    writer.last_step = resumed_from
    return writer


def save(writer: CheckpointWriter, step: int, value: float | None = None) -> None:
    tensor = torch.full((3, 2), float(step))
    writer.save(step, [StateShard("a", (3, 2), 0, tensor)], {}, {})
    if value is not None:
        writer.mark_best(step, value)


def steps_of(folder: Path) -> list[int]:
    return [step for step, _ in checkpoint_folders(folder)]


def best_step(folder: Path) -> int | None:
    best = best_checkpoint(folder, IDENTITY)
    return None if best is None else best.step


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    assert best_step(tmp_path) is None
    for step, value in enumerate([3.0, 1.0, 2.0, 4.0, 1.0, 5.0], start=1):
        save(writer, step, value)
    writer.wait()
    assert steps_of(tmp_path) == [6, 5, 2]
    best = best_checkpoint(tmp_path, IDENTITY)
    assert best is not None
    assert torch.equal(best.read("a"), torch.full((3, 2), 2.0))


def test_a_best_one_that_was_surpassed_goes_with_the_next_save(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    for step, value in [(1, 2.0), (2, 3.0), (3, 3.0), (4, 1.0), (5, 3.0)]:
        save(writer, step, value)
    writer.wait()
    assert steps_of(tmp_path) == [5, 4]
    assert best_step(tmp_path) == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_the_best(tmp_path: Path, value: float) -> None:
    writer = new_writer(tmp_path)
    save(writer, 1, value)
    writer.wait()
    assert best_step(tmp_path) is None


def test_a_step_that_was_not_saved_is_never_the_best(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    save(writer, 1, 2.0)
    writer.mark_best(2, 1.0)
    writer.wait()
    assert best_step(tmp_path) == 1


def test_a_step_whose_save_failed_is_never_the_best(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    writer.save(1, [StateShard("a", (3, 2), 1, torch.zeros(2, 2))], {}, {})
    writer.mark_best(1, 1.0)
    with pytest.raises(CheckpointError, match="could not be written"):
        writer.wait()
    assert best_step(tmp_path) is None


def test_other_ranks_than_the_first_mark_nothing(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    save(writer, 1)
    writer.wait()
    peer = CheckpointWriter(tmp_path, identity=IDENTITY, token="0000000a", rank=1, world_size=2)
    peer.mark_best(1, 1.0)
    peer.wait()
    assert best_step(tmp_path) is None
    writer.mark_best(1, 1.0)
    writer.wait()
    assert best_step(tmp_path) == 1


def test_the_next_process_knows_the_best_and_may_mark_what_it_resumed(tmp_path: Path) -> None:
    first = new_writer(tmp_path)
    save(first, 1, 2.0)
    save(first, 2)
    first.wait()
    second = new_writer(tmp_path, "0000000b", resumed_from=2)
    # Its evaluation was cut short by the end of the first process.
    second.mark_best(2, 3.0)
    for step in (3, 4):
        save(second, step, 4.0)
    second.wait()
    assert steps_of(tmp_path) == [4, 3, 1]
    third = new_writer(tmp_path, "0000000c", resumed_from=4)
    third.mark_best(4, 1.0)
    save(third, 5)
    third.wait()
    assert best_step(tmp_path) == 4
    assert steps_of(tmp_path) == [5, 4]


def test_a_damaged_best_one_gives_way_to_a_worse_one_that_is_whole(tmp_path: Path) -> None:
    first = new_writer(tmp_path)
    for step, value in [(1, 1.0), (2, 2.0), (3, 2.0)]:
        save(first, step, value)
    first.wait()
    path = tmp_path / "step-00000001-0000000a" / "rank-000-of-001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert best_step(tmp_path) is None
    second = new_writer(tmp_path, "0000000b", resumed_from=3)
    save(second, 4, 5.0)
    second.wait()
    assert best_step(tmp_path) == 4
    assert steps_of(tmp_path) == [4, 3]


def test_a_damaged_record_of_the_best_stops_nothing(tmp_path: Path) -> None:
    first = new_writer(tmp_path)
    save(first, 1, 1.0)
    first.wait()
    path = tmp_path / "best.json"
    data = path.read_bytes()
    for place in range(0, len(data), 4):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        assert best_step(tmp_path) is None
    second = new_writer(tmp_path, "0000000b", resumed_from=1)
    save(second, 2, 5.0)
    second.wait()
    assert best_step(tmp_path) == 2
    newest = newest_checkpoint(tmp_path, IDENTITY)
    assert newest is not None
    assert newest.step == 2


def test_the_best_of_another_recipe_is_not_ours(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    save(writer, 1, 1.0)
    writer.wait()
    assert best_checkpoint(tmp_path, "other") is None
