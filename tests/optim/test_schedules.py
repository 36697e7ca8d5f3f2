"""Schedules against points worked out by hand from RECIPE section 2."""

import pytest

from nanochat_core.optim.recipe import ScheduleRecipe
from nanochat_core.optim.schedules import lr_multiplier, muon_momentum, weight_decay_multiplier
from nanochat_core.training.recipes import SFT_SCHEDULE

PRETRAIN = ScheduleRecipe()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1 / 40),
        (38, 39 / 40),
        (39, 1.0),
        (40, 1.0),
        (350, 1.0),  # the warm-down takes the last 650 of 1000
        (675, 0.5 + 0.05 * 0.5),
        (999, 1 / 650 + 0.05 * 649 / 650),
    ],
)
def test_the_rate_warms_up_stays_and_warms_down(step: int, expected: float) -> None:
    assert lr_multiplier(step, 1000, PRETRAIN) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.85),
        (200, 0.91),
        (399, 0.85 + 0.12 * 399 / 400),  # the ramp goes on after step 350
        (400, 0.97 - 0.07 * 50 / 650),
        (675, 0.935),
        (1000, 0.90),
    ],
)
def test_momentum_ramps_even_inside_the_warmdown_and_then_falls(step: int, expected: float) -> None:
    assert muon_momentum(step, 1000, PRETRAIN) == pytest.approx(expected, rel=1e-12)


def test_momentum_stays_at_its_peak_between_ramp_and_warmdown() -> None:
    assert muon_momentum(400, 5570, PRETRAIN) == 0.97
    assert muon_momentum(1949, 5570, PRETRAIN) == 0.97  # 5570 - round(0.65 * 5570) = 1950
    assert muon_momentum(1951, 5570, PRETRAIN) < 0.97


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (250, 0.85355339), (500, 0.5), (1000, 0)])
def test_weight_decay_follows_half_a_cosine(step: int, expected: float) -> None:
    assert weight_decay_multiplier(step, 1000, PRETRAIN) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("step", "rate", "momentum"),
    [(0, 1.0, 0.85), (150, 1.0, 0.90), (300, 1.0, 0.95), (450, 0.5, 0.95), (450.6, 0.498, 0.95)],
)
def test_fine_tuning_starts_at_full_rate_and_ends_at_zero(
    step: float, rate: float, momentum: float
) -> None:
    assert lr_multiplier(step, 600, SFT_SCHEDULE) == pytest.approx(rate)
    assert lr_multiplier(600, 600, SFT_SCHEDULE) == 0.0
    assert muon_momentum(step, 600, SFT_SCHEDULE) == pytest.approx(momentum)
    assert weight_decay_multiplier(step, 600, SFT_SCHEDULE) == 1.0


def test_a_run_shorter_than_its_warmup_only_warms_up() -> None:
    assert [lr_multiplier(t, 4, PRETRAIN) for t in range(4)] == [t / 40 for t in (1, 2, 3, 4)]


def test_without_a_warmdown_the_rate_stays() -> None:
    flat = ScheduleRecipe(warmup_steps=0, warmdown_fraction=0.0)
    assert {lr_multiplier(t, 10, flat) for t in range(10)} == {1.0}
    assert muon_momentum(9, 10, flat.model_copy(update={"momentum_ramp_steps": 0})) == 0.97
