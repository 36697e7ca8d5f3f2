import itertools
import random
from pathlib import Path

import pytest
import torch

from nanochat_core.errors import CheckpointError
from nanochat_core.optim.groups import StateShard
from nanochat_core.training.checkpoint_files import Checkpoint, newest_checkpoint
from nanochat_core.training.checkpoints import CheckpointWriter, spread_over_ranks

IDENTITY = "recipe"


def whole(tensors: dict[str, torch.Tensor]) -> list[StateShard]:
    return [StateShard(name, tuple(t.shape), 0, t) for name, t in tensors.items()]


def some_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(7, 3, generator=generator),
        "b": torch.randn(5, generator=generator).bfloat16(),
        "scalar": torch.randn((), generator=generator),
    }


def save_one(folder: Path, step: int, *, token: str = "0000000a", keep: int = 2) -> None:
    writer = CheckpointWriter(folder, identity=IDENTITY, token=token, keep=keep)
    writer.save(step, whole(some_tensors(step)), {"loss_ema": 0.5}, {"metrics.jsonl": b"{}\n"})
    writer.wait()


def test_what_was_saved_is_what_is_read(tmp_path: Path) -> None:
    save_one(tmp_path, 3)
    checkpoint = newest_checkpoint(tmp_path, IDENTITY)
    assert checkpoint is not None
    assert checkpoint.step == 3
    assert checkpoint.scalars == {"loss_ema": 0.5}
    assert checkpoint.attachment("metrics.jsonl") == b"{}\n"
    for name, tensor in some_tensors(3).items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.read(name).dtype == tensor.dtype


def test_later_changes_of_a_tensor_do_not_reach_a_save_under_way(tmp_path: Path) -> None:
    tensor = torch.zeros(1000, 100)
    writer = CheckpointWriter(tmp_path, identity=IDENTITY, token="0000000a")
    writer.save(1, whole({"a": tensor}), {}, {})
    tensor.fill_(1.0)
    writer.wait()
    assert torch.equal(
        Checkpoint.open(next(tmp_path.iterdir()), IDENTITY).read("a")[0, :2], torch.zeros(2)
    )


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_slices_saved_by_two_ranks_read_at_any_world_size(tmp_path: Path, readers: int) -> None:
    rows = torch.arange(21.0).reshape(7, 3)
    for rank, (low, high) in reversed(list(enumerate([(0, 4), (4, 7)]))):
        shard = StateShard("a", (7, 3), low, rows[low:high])
        writer = CheckpointWriter(
            tmp_path, identity=IDENTITY, token="0000000a", rank=rank, world_size=2
        )
        writer.save(1, [shard], {}, {})
        writer.wait()
    checkpoint = newest_checkpoint(tmp_path, IDENTITY)
    assert checkpoint is not None
    bounds = [round(i * 7 / readers) for i in range(readers + 1)]
    parts = [checkpoint.read("a", low, high) for low, high in itertools.pairwise(bounds)]
    assert torch.equal(torch.cat(parts), rows)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_one(tmp_path, step, token=f"0000000{step}", keep=2)
    assert sorted(path.name[:13] for path in tmp_path.iterdir()) == [
        "step-00000003",
        "step-00000004",
    ]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_takes_the_place_of_no_other(tmp_path: Path, keep: int) -> None:
    for step in (1, 2, 3):
        save_one(tmp_path, step, token="0000000a", keep=3)
    for step in (2, 3):
        path = tmp_path / f"step-0000000{step}-0000000a" / "rank-000-of-001.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    # Resumed after step 1 by a process of its own, which saves step 2 again.
    save_one(tmp_path, 2, token="00000009", keep=keep)
    kept = {"step-00000002-00000009", "step-00000001-0000000a"}
    assert {path.name for path in tmp_path.iterdir()} == set(sorted(kept, reverse=True)[:keep])


def test_pruning_spares_the_next_step_that_another_rank_has_begun(tmp_path: Path) -> None:
    begun = tmp_path / "step-00000002-0000000a"
    begun.mkdir()
    save_one(tmp_path, 1, token="0000000a", keep=1)
    assert begun.exists()


def test_a_folder_without_manifest_is_not_a_checkpoint(tmp_path: Path) -> None:
    save_one(tmp_path, 1)
    save_one(tmp_path, 2, token="0000000b")
    (tmp_path / "step-00000002-0000000b" / "manifest.json").unlink()
    checkpoint = newest_checkpoint(tmp_path, IDENTITY)
    assert checkpoint is not None
    assert checkpoint.step == 1


def test_one_changed_byte_anywhere_is_noticed_and_the_older_one_taken(tmp_path: Path) -> None:
    generator = random.Random(0)
    save_one(tmp_path, 1)
    for attempt in range(20):
        save_one(tmp_path, 2, token=f"{attempt + 16:08x}")
        folder = tmp_path / f"step-00000002-{attempt + 16:08x}"
        names = sorted(path.name for path in folder.iterdir())
        path = folder / names[attempt % len(names)]
        data = bytearray(path.read_bytes())
        position = generator.randrange(len(data))
        data[position] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            Checkpoint.open(folder, IDENTITY)
        (folder / "manifest.json").unlink()
    checkpoint = newest_checkpoint(tmp_path, IDENTITY)
    assert checkpoint is not None
    assert checkpoint.step == 1


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    save_one(tmp_path, 1)
    with pytest.raises(CheckpointError, match="another recipe"):
        Checkpoint.open(next(tmp_path.iterdir()), "other")


def test_a_failed_write_is_raised_by_the_next_save(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    writer = CheckpointWriter(blocked, identity=IDENTITY, token="0000000a")
    writer.save(1, whole(some_tensors(1)), {}, {})
    with pytest.raises(CheckpointError, match="could not be written"):
        writer.save(2, whole(some_tensors(2)), {}, {})


def test_replicated_tensors_are_spread_over_ranks_once_each() -> None:
    tensors = {f"t{i}": torch.zeros(i + 1) for i in range(10)}
    owned = [shard.name for rank in range(4) for shard in spread_over_ranks(tensors, rank, 4)]
    assert sorted(owned) == sorted(tensors)
