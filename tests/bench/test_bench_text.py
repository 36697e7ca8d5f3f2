"""The made-up text of the training benchmark."""

import math

import numpy as np

from nanochat_core.bench.markov import ENTROPY_NATS, FOLLOWER_ODDS, MarkovText

TEXT = MarkovText(64, seed=3)


def test_rows_follow_from_seed_and_step_alone() -> None:
    inputs, targets = TEXT.rows(7, 4, 32)
    again, _ = MarkovText(64, seed=3).rows(7, 4, 32)
    assert (inputs == again).all()
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    for other in (TEXT.rows(8, 4, 32), MarkovText(64, seed=4).rows(7, 4, 32)):
        assert (inputs != other[0]).any()
    assert 0 <= inputs.min() <= inputs.max() < 64


def test_every_token_is_followed_by_one_of_its_few_at_the_stated_odds() -> None:
    inputs, targets = TEXT.rows(0, 50, 400)
    followers = TEXT.followers_VK[inputs]
    assert (followers == targets[..., None]).any(-1).all()
    distinct = [len(set(row)) == len(FOLLOWER_ODDS) for row in TEXT.followers_VK.tolist()]
    counted = np.array(distinct)[inputs]
    shares = [(followers[..., k] == targets)[counted].mean() for k in range(len(FOLLOWER_ODDS))]
    assert np.allclose(shares, FOLLOWER_ODDS, atol=0.02)


def test_the_floor_of_the_loss_is_the_entropy_of_the_odds() -> None:
    assert math.isclose(ENTROPY_NATS, 1.75 * math.log(2))
