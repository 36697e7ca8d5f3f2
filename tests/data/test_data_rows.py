from pathlib import Path

import numpy as np
import pytest
from data_tools import BOS, random_lengths, write_tokens

from nanochat_core.data.rows import TrainRows
from nanochat_core.data.validation_rows import ValidationRows
from nanochat_core.errors import ConfigError, DataError

T = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shards = [random_lengths(seed, 60) for seed in range(6)]
    return write_tokens(tmp_path_factory.mktemp("tokens"), shards)


def rows(folder: Path, *, block_shards: int = 2, **changes: object) -> TrainRows:
    values = {"sequence_len": T, "packing": "split", "seed": 7, **changes}
    return TrainRows(folder, block_shards=block_shards, **values)  # type: ignore[arg-type]


def all_tokens(train: TrainRows, first: int, count: int) -> list[int]:
    """Tokens of whole rows without added BOS: the first input and every target."""
    inputs, targets = train.read(first, count)
    whole = np.concatenate([inputs[:, :1], targets], axis=1).ravel()
    return whole[whole > BOS].tolist()


def stored_tokens(folder: Path, names: tuple[str, ...]) -> list[int]:
    flat = np.concatenate([np.fromfile(folder / f"{n}.tokens.bin", "<u2") for n in names])
    return flat[flat > BOS].tolist()


def test_an_epoch_holds_every_token_of_every_train_document_once(folder: Path) -> None:
    train = rows(folder)
    expected = stored_tokens(folder, train.index.train)
    assert sorted(all_tokens(train, 0, train.num_rows)) == sorted(expected)


def test_targets_are_inputs_one_place_later_and_padding_does_not_count(folder: Path) -> None:
    inputs, targets = rows(folder).read(0, rows(folder).num_rows)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.shape == targets.shape == (rows(folder).num_rows, T)
    assert (inputs[:, 0] == BOS).all()
    inside = targets[:, :-1] >= 0
    assert (inputs[:, 1:][inside] == targets[:, :-1][inside]).all()
    assert (inputs[:, 1:][~inside] == 0).all()
    assert (targets[~np.pad(inside, ((0, 0), (0, 1)), constant_values=True)] == -1).all()


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_slices_of_any_number_of_readers_make_the_same_global_batch(
    folder: Path, world_size: int
) -> None:
    global_batch, share = 16, 16 // world_size
    for step in range(4):
        expected = rows(folder).read(step * global_batch, global_batch)
        parts = [
            rows(folder).read(step * global_batch + rank * share, share)
            for rank in range(world_size)
        ]
        for which in (0, 1):
            whole = np.concatenate([part[which] for part in parts])
            np.testing.assert_array_equal(whole, expected[which])


@pytest.mark.parametrize("packing", ["split", "crop"])
def test_reading_in_pieces_over_block_and_epoch_borders_changes_nothing(
    folder: Path, packing: str
) -> None:
    whole = rows(folder, packing=packing)
    count = 2 * whole.num_rows + 5
    inputs, targets = whole.read(0, count)
    for first in range(0, count, 7):
        part = whole.read(first, min(7, count - first))
        np.testing.assert_array_equal(part[0], inputs[first : first + 7])
        np.testing.assert_array_equal(part[1], targets[first : first + 7])


def test_more_shards_extend_the_order_of_fewer(tmp_path: Path) -> None:
    shards = [random_lengths(seed, 60) for seed in range(6)]
    short = rows(write_tokens(tmp_path / "short", [*shards[:4], shards[-1]]))
    long = rows(write_tokens(tmp_path / "long", shards))
    for mine, theirs in zip(
        short.read(0, short.num_rows), long.read(0, short.num_rows), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_blocks_come_in_shard_order_and_rows_are_mixed_inside(folder: Path) -> None:
    train = rows(folder, block_shards=2)
    first = int(train.block_first_rows[1])
    assert sorted(all_tokens(train, 0, first)) == stored_tokens(folder, train.index.train[:2])
    assert all_tokens(train, 0, first) != sorted(all_tokens(train, 0, first))


def test_the_second_epoch_has_the_same_rows_in_another_order(folder: Path) -> None:
    train = rows(folder)
    first, second = (train.read(epoch * train.num_rows, train.num_rows)[0] for epoch in (0, 1))
    assert first.tolist() != second.tolist()
    assert sorted(first.tolist()) == sorted(second.tolist())


def test_too_many_epochs_are_refused_with_what_would_work(folder: Path) -> None:
    train = rows(folder)
    train.check_epochs(2 * train.num_rows, 2.0, rows_per_step=4)
    steps = train.num_rows // 4
    with pytest.raises(
        ConfigError, match=rf"about 10 such train shards.* at most {steps} .* to 2 or more"
    ):
        train.check_epochs(2 * train.num_rows, 1.0, rows_per_step=4)


def test_validation_rows_start_with_bos_and_batches_cover_them_once(folder: Path) -> None:
    validation = ValidationRows(folder, sequence_len=T, max_tokens=10**9)
    whole = validation.read(0, validation.num_rows)
    assert (whole[0][:, 0] == BOS).all()
    parts = [
        batch[1] for rank in range(3) for batch in validation.batches(4, rank=rank, world_size=3)
    ]
    assert sorted(np.concatenate(parts).tolist()) == sorted(whole[1].tolist())


def test_validation_rows_stop_at_the_token_limit(folder: Path) -> None:
    assert ValidationRows(folder, sequence_len=T, max_tokens=5 * T + 3).num_rows == 5
    assert ValidationRows(folder, sequence_len=T, max_tokens=1).num_rows == 1


def test_a_folder_without_token_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokens\.json"):
        rows(tmp_path)
