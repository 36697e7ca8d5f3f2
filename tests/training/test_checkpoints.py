import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.errors import CheckpointError
from nanochat_core.optim.groups import StateShard
from nanochat_core.training.checkpoint_buffers import HostBuffers
from nanochat_core.training.checkpoint_files import (
    Checkpoint,
    describe_newest,
    newest_checkpoint,
)
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


def save_one(
    folder: Path, step: int, *, token: str = "0000000a", keep: int = 2, resumed_from: int = -1
) -> None:
    """Save as a process of its own that went on from `resumed_from` would."""
    writer = CheckpointWriter(folder, identity=IDENTITY, token=token, keep=keep)
    writer.last_step = resumed_from
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
        save_one(tmp_path, step, token=f"0000000{step}", keep=2, resumed_from=step - 1)
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
    save_one(tmp_path, 2, token="00000009", keep=keep, resumed_from=1)
    kept = {"step-00000002-00000009", "step-00000001-0000000a"}
    assert {path.name for path in tmp_path.iterdir()} == set(sorted(kept, reverse=True)[:keep])


def test_what_was_passed_over_on_resume_does_not_count_later_either(tmp_path: Path) -> None:
    for step in (1, 2):
        save_one(tmp_path, step, token="0000000a", keep=3)
    flip_a_bit(tmp_path / "step-00000002-0000000a" / "rank-000-of-001.safetensors", 900)
    # Step 2 is older than what is saved now, and still of no use.
    save_one(tmp_path, 3, token="00000009", keep=2, resumed_from=1)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"step-00000001-0000000a", "step-00000003-00000009"}


def test_what_a_killed_process_left_unfinished_is_gone_before_more_is_written(
    tmp_path: Path,
) -> None:
    save_one(tmp_path, 1)
    left = tmp_path / "step-00000002-0000000b"
    left.mkdir()
    (left / ".rank-000-of-001.safetensors.tmp").write_bytes(b"half")
    writer = CheckpointWriter(tmp_path, identity=IDENTITY, token="0000000c", world_size=2)
    writer.last_step = 1
    writer.save(2, [], {}, {})
    deadline = time.monotonic() + 5
    while left.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not left.exists()
    peer = CheckpointWriter(tmp_path, identity=IDENTITY, token="0000000c", rank=1, world_size=2)
    peer.save(2, whole(some_tensors(2)), {}, {})
    writer.wait()
    peer.wait()
    newest = newest_checkpoint(tmp_path, IDENTITY)
    assert newest is not None
    assert newest.step == 2


def test_pruning_spares_the_next_step_that_another_rank_has_begun(tmp_path: Path) -> None:
    begun = tmp_path / "step-00000002-0000000a"
    begun.mkdir()
    save_one(tmp_path, 1, token="0000000a", keep=1)
    assert begun.exists()


def test_a_folder_without_manifest_is_not_a_checkpoint(tmp_path: Path) -> None:
    save_one(tmp_path, 1)
    save_one(tmp_path, 2, token="0000000b", resumed_from=1)
    (tmp_path / "step-00000002-0000000b" / "manifest.json").unlink()
    checkpoint = newest_checkpoint(tmp_path, IDENTITY)
    assert checkpoint is not None
    assert checkpoint.step == 1


def flip_a_bit(path: Path, place: int) -> bytes:
    """Flip one bit; returns the bytes before."""
    data = path.read_bytes()
    byte, bit = divmod(place % (8 * len(data)), 8)
    path.write_bytes(data[:byte] + bytes([data[byte] ^ (1 << bit)]) + data[byte + 1 :])
    return data


@pytest.mark.e2e
def test_of_1000_flipped_bits_anywhere_in_a_checkpoint_each_is_refused(tmp_path: Path) -> None:
    rows = torch.arange(200.0).reshape(20, 10)
    for rank, (low, high) in reversed(list(enumerate([(0, 11), (11, 20)]))):
        writer = CheckpointWriter(
            tmp_path, identity=IDENTITY, token="0000000a", rank=rank, world_size=2
        )
        shards = [StateShard("a", (20, 10), low, rows[low:high])]
        attachments = {"metrics.jsonl": b'{"step": 1, "train/loss": 5.5}\n'}
        writer.save(1, shards, {"loss_scale": 65536.0}, attachments)
        writer.wait()
    (folder,) = tmp_path.iterdir()
    files = sorted(folder.iterdir())
    assert len(files) == 6
    choose = random.Random(0)
    for attempt in range(1000):
        path = files[attempt % len(files)]
        data = flip_a_bit(path, choose.randrange(8 * path.stat().st_size))
        with pytest.raises(CheckpointError):
            Checkpoint.open(folder, IDENTITY)
        path.write_bytes(data)
    assert torch.equal(Checkpoint.open(folder, IDENTITY).read("a"), rows)


def test_the_older_one_is_taken_when_the_newest_is_damaged(tmp_path: Path) -> None:
    save_one(tmp_path, 1)
    save_one(tmp_path, 2, resumed_from=1, token="0000000b")
    newest = tmp_path / "step-00000002-0000000b"
    for path in sorted(newest.iterdir()):
        data = flip_a_bit(path, 100)
        checkpoint = newest_checkpoint(tmp_path, IDENTITY)
        assert checkpoint is not None
        assert checkpoint.step == 1, path.name
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"lacks rank-000-of-001\.safetensors"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"has \d+ bytes, expected \d+"),
        (lambda path: flip_a_bit(path, 900), "does not match its recorded sha256"),
    ],
)
def test_the_error_says_which_file_is_damaged_and_how(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    save_one(tmp_path, 1)
    folder = tmp_path / "step-00000001-0000000a"
    damage(folder / "rank-000-of-001.safetensors")
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder, IDENTITY)


def test_a_checkpoint_of_another_format_is_refused_by_name(tmp_path: Path) -> None:
    save_one(tmp_path, 1)
    path = tmp_path / "step-00000001-0000000a" / "manifest.json"
    path.write_bytes(seal({**unseal(path.read_bytes(), "manifest"), "format": 1}))
    with pytest.raises(CheckpointError, match="has format 1, expected 2: another version"):
        Checkpoint.open(path.parent, IDENTITY)


def test_a_disk_that_cannot_be_read_stops_the_run_instead_of_an_older_start(tmp_path: Path) -> None:
    save_one(tmp_path, 1)
    save_one(tmp_path, 2, resumed_from=1)
    path = tmp_path / "step-00000002-0000000a" / "manifest.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"step 2 cannot be read.*Try again"):
        newest_checkpoint(tmp_path, IDENTITY)


def test_rows_that_no_rank_saved_keep_a_checkpoint_from_being_one(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, identity=IDENTITY, token="0000000a")
    writer.save(1, [StateShard("a", (7, 3), 2, torch.zeros(5, 3))], {}, {})
    with pytest.raises(CheckpointError, match=r"rows \[2:7\] of a, which has 7"):
        writer.wait()
    assert newest_checkpoint(tmp_path, IDENTITY) is None


def test_no_rows_are_read_as_no_rows(tmp_path: Path) -> None:
    save_one(tmp_path, 1)
    checkpoint = newest_checkpoint(tmp_path, IDENTITY)
    assert checkpoint is not None
    assert checkpoint.read("a", 7, 7).shape == (0, 3)
    assert checkpoint.read("b", 2, 2).dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match=r"no rows \[5:9\] of a, which is of shape \(7, 3\)"):
        checkpoint.read("a", 5, 9)


def test_the_newest_is_described_in_words(tmp_path: Path) -> None:
    assert describe_newest(tmp_path / "none") == "no checkpoint yet"
    save_one(tmp_path, 1250)
    (tmp_path / "step-00001300-0000000b").mkdir()
    assert describe_newest(tmp_path) == "step 1,250 in step-00001250-0000000a"


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


def test_a_save_whose_copy_failed_can_be_made_again(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, identity=IDENTITY, token="0000000a")
    with pytest.raises(CheckpointError, match="complex64"):
        writer.save(1, whole({"a": torch.zeros(2, dtype=torch.complex64)}), {}, {})
    writer.save(1, whole(some_tensors(1)), {}, {})
    writer.wait()
    assert newest_checkpoint(tmp_path, IDENTITY) is not None


def test_replicated_tensors_are_spread_over_ranks_once_each() -> None:
    tensors = {f"t{i}": torch.zeros(i + 1) for i in range(10)}
    owned = [shard.name for rank in range(4) for shard in spread_over_ranks(tensors, rank, 4)]
    assert sorted(owned) == sorted(tensors)


@pytest.mark.parametrize("block_bytes", [16, 40, 2**20])
def test_the_file_in_memory_is_a_safetensors_file(block_bytes: int) -> None:
    tensors = some_tensors(1) | {
        "flags": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 4),
        "ids": torch.arange(5),
        "turned": torch.randn(4, 6).T,
    }
    file = HostBuffers(block_bytes).copy(whole(tensors))
    file.copied()
    read = safetensors.torch.load(b"".join(file.pieces))
    assert read.keys() == {f"{name}@0" for name in tensors}
    for name, tensor in tensors.items():
        assert torch.equal(read[f"{name}@0"], tensor)
        assert read[f"{name}@0"].dtype == tensor.dtype


def test_later_saves_use_the_memory_of_the_first(tmp_path: Path) -> None:
    buffers = HostBuffers(64)
    first, second = (buffers.copy(whole(some_tensors(seed))).pieces for seed in (1, 2))
    assert len(first) > 2
    for left, right in zip(first[1:], second[1:], strict=True):
        assert np.shares_memory(np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8))
    other = buffers.copy(whole({"a": torch.zeros(8, 3)})).pieces
    assert len(safetensors.torch.load(b"".join(other))) == 1


def test_a_save_in_quick_succession_waits_for_the_one_before(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, identity=IDENTITY, token="0000000a", keep=9)
    for step in range(1, 9):
        writer.save(step, whole(some_tensors(step)), {}, {})
    writer.save(8, whole(some_tensors(8)), {}, {})
    writer.wait()
    assert not writer.is_writing
    assert len(writer.stall_seconds) == 8
    for step in range(1, 9):
        checkpoint = Checkpoint.open(tmp_path / f"step-{step:08d}-0000000a", IDENTITY)
        assert torch.equal(checkpoint.read("a"), some_tensors(step)["a"])


@pytest.mark.gpu
def test_on_a_gpu_what_the_stream_does_later_does_not_reach_the_copy(tmp_path: Path) -> None:
    tensor = torch.full((2**22,), 1.0, device="cuda")
    writer = CheckpointWriter(tmp_path, identity=IDENTITY, token="0000000a")
    writer.prepare(whole({"a": tensor}))
    for step in (1, 2):
        # Work that the copy has to wait for, on the device alone.
        torch.cuda._sleep(200_000_000)
        tensor.fill_(float(step))
        writer.save(step, whole({"a": tensor}), {}, {})
        tensor.fill_(-1.0)
    writer.wait()
    assert writer.stall_seconds[0] < 0.02
    for step in (1, 2):
        checkpoint = Checkpoint.open(tmp_path / f"step-{step:08d}-0000000a", IDENTITY)
        assert bool((checkpoint.read("a") == step).all())
