import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat_core.data.order import permute

GOLDEN = [5, 9, 0, 6, 8, 3, 4, 2, 1, 7]
"""Resuming an old run on a new version must not reorder its rows."""


def order(count: int, *, seed: int = 0, epoch: int = 0, block: int = 0) -> list[int]:
    return permute(np.arange(count), count, seed=seed, epoch=epoch, block=block).tolist()


@given(count=st.integers(1, 700), seed=st.integers(0, 2**40), epoch=st.integers(0, 9))
def test_every_row_comes_exactly_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(order(count, seed=seed, epoch=epoch)) == list(range(count))


def test_a_part_of_the_order_is_the_same_as_that_part_of_the_whole() -> None:
    part = permute(np.arange(300, 350), 1000, seed=3, epoch=1, block=2)
    assert part.tolist() == order(1000, seed=3, epoch=1, block=2)[300:350]


@pytest.mark.parametrize("changed", [{"seed": 1}, {"epoch": 1}, {"block": 1}])
def test_seed_epoch_and_block_each_make_another_order(changed: dict[str, int]) -> None:
    assert order(500) != order(500, **changed)


def test_the_order_is_the_one_of_all_machines_and_versions() -> None:
    assert order(10, seed=42) == GOLDEN


def test_rows_end_up_anywhere() -> None:
    places = np.array([order(64, seed=seed)[0] for seed in range(2000)])
    # 64 places, 2000 draws: chi-square with 63 degrees of freedom is below 120 with p = 0.99998.
    expected = 2000 / 64
    assert ((np.bincount(places, minlength=64) - expected) ** 2 / expected).sum() < 120
