"""Best sizes and exponents: the truth is in their intervals, which end where the data tell."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scaling_tools import (
    BUDGETS,
    CHINCHILLA,
    DEPTH_BUDGETS,
    Law,
    laws_of_seed,
    noisy_points,
)
from scipy import stats

from nanochat_core.errors import DataError
from nanochat_core.report.sweeps.fits import (
    MAX_SKEW,
    Interval,
    fit_valley,
    fit_valleys,
    residual_with,
)
from nanochat_core.report.sweeps.isoflop import (
    AXES,
    PARAMETERS,
    RATIO,
    TOKENS,
    Estimate,
    Laws,
    fit_laws,
)
from nanochat_core.report.sweeps.law_checks import misfit
from nanochat_core.report.sweeps.surface import SHARES, fit_surface

SEEDS = range(20)
NOISE = 0.03
WITHOUT_A_BEST = {
    "level": Law(constant=1.0, by_size=0.0, by_tokens=0.0),
    "falls with tokens alone": Law(constant=1.0, by_size=0.0, by_tokens=500.0, beta=0.3),
}


def verdicts(laws: Laws) -> Iterator[tuple[str, Estimate | None, float]]:
    """Every number that is given an interval, beside the truth."""
    assert laws.joint is not None
    for axis in AXES:
        yield f"exponent of {axis}", laws.joint.exponents[axis], CHINCHILLA.exponents[axis]
    for flops in BUDGETS:
        truth = CHINCHILLA.best(flops)[RATIO]
        yield f"all points, {flops:.2g}", laws.joint.optima[flops][RATIO], truth
        yield f"own points, {flops:.2g}", laws.curves[RATIO].optima[flops], truth


def inside(estimate: Estimate | None, truth: float) -> bool:
    """Whether the interval has the truth; where no best size is named nothing wrong is said."""
    return estimate is None or (estimate.interval is not None and estimate.interval.contains(truth))


@pytest.mark.parametrize("seed", SEEDS)
def test_all_points_bound_every_number_around_its_estimate(seed: int) -> None:
    for name, estimate, _ in verdicts(laws_of_seed(NOISE, seed)):
        if estimate is None:
            assert name.startswith("own")
            continue
        assert estimate.interval is not None
        assert estimate.interval.contains(estimate.value)
        assert estimate.interval.is_bounded or name.startswith("own")


def test_the_truth_is_in_the_intervals_of_eighteen_seeds_of_twenty() -> None:
    found: dict[str, int] = {}
    for seed in SEEDS:
        for name, estimate, truth in verdicts(laws_of_seed(NOISE, seed)):
            found[name] = found.get(name, 0) + inside(estimate, truth)
    assert len(found) == 13
    assert {name: count for name, count in found.items() if count < 18} == {}


@pytest.mark.long
@pytest.mark.parametrize("noise", [0.03, 0.003])
def test_intervals_cover_what_they_promise_over_many_seeds(noise: float) -> None:
    found: dict[str, list[bool]] = {}
    for seed in range(200):
        for name, estimate, truth in verdicts(fit_laws(noisy_points(noise, seed))):
            found.setdefault(name, []).append(inside(estimate, truth))
    # Three standard errors of a share of 0.95 among 200 are 0.046.
    assert {name: np.mean(each) for name, each in found.items() if np.mean(each) < 0.904} == {}


def test_a_tenth_of_the_noise_gives_narrow_intervals() -> None:
    laws = laws_of_seed(0.003, 0)
    assert laws.joint is not None
    exponent = laws.joint.exponents[PARAMETERS].interval
    assert exponent is not None
    assert exponent.high - exponent.low < 0.04
    for flops in BUDGETS:
        for estimate, widest in (
            (laws.joint.optima[flops][RATIO], 1.35),
            (laws.curves[RATIO].optima[flops], 2.0),
        ):
            assert estimate is not None
            assert estimate.interval is not None
            assert estimate.interval.high / estimate.interval.low < widest


def test_without_noise_the_law_is_found() -> None:
    laws = fit_laws(noisy_points(0.0, 0))
    assert laws.joint is not None
    assert laws.joint.surface.exponents == pytest.approx((0.34, 0.28), rel=1e-3)
    assert laws.joint.surface.constants()[0] == pytest.approx(1.69, rel=1e-3)
    for axis in AXES:
        assert laws.joint.exponents[axis].value == pytest.approx(
            CHINCHILLA.exponents[axis], abs=1e-4
        )
        for flops in (1e19, 1e22):
            prediction = laws.predict(flops)
            assert prediction is not None
            assert prediction.best[axis].value == pytest.approx(
                CHINCHILLA.best(flops)[axis], rel=1e-3
            )


def test_skew_takes_away_the_error_that_parabolas_have_over_wide_sizes() -> None:
    points = noisy_points(0.0, 0, factor=100.0)
    logarithms = [
        (
            [math.log(point.on(RATIO)) for point in points if point.budget == flops],
            [math.log(point.bpb) for point in points if point.budget == flops],
        )
        for flops in BUDGETS
    ]

    def errors(skew: float) -> list[float]:
        found = fit_valleys(logarithms, skew)
        bottoms = [found.valley(i).bottom or math.inf for i in range(len(BUDGETS))]
        truths = [math.log(CHINCHILLA.best(flops)[RATIO]) for flops in BUDGETS]
        return [abs(bottom - truth) for bottom, truth in zip(bottoms, truths, strict=True)]

    assert min(errors(0.0)) > 0.07
    assert max(errors(MAX_SKEW / 2)) < 0.02


def test_a_well_determined_parabola_has_the_interval_of_fieller() -> None:
    x = np.linspace(-1.5, 2.0, 8)
    y = 3.0 + 0.4 * (x - 0.3) ** 2 + 0.05 * np.random.default_rng(0).standard_normal(8)
    found = fit_valleys([(list(x), list(y))], max_skew=0.0)
    # The textbook: (b + 2 c v)² <= t² s² Var(b + 2 c v), a quadratic in the vertex v.
    columns = np.stack([np.ones(8), x, x**2], axis=1)
    covariance = np.linalg.inv(columns.T @ columns)
    _, b, c = covariance @ columns.T @ y
    residual = y - columns @ (covariance @ columns.T @ y)
    t2s2 = stats.t.ppf(0.975, 5) ** 2 * float(residual @ residual) / 5
    ends = np.roots(
        [
            4 * (c**2 - t2s2 * covariance[2, 2]),
            4 * (b * c - t2s2 * covariance[1, 2]),
            b**2 - t2s2 * covariance[1, 1],
        ]
    )
    interval = found.interval(0)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(sorted(ends), abs=1e-3)
    assert found.valley(0).bottom == pytest.approx(-b / (2 * c))


def test_the_bottom_of_a_skewed_valley_is_where_it_is_lowest() -> None:
    x = np.linspace(-2.0, 2.0, 9)
    for skew in (-0.3, 0.2):
        valley = fit_valley(list(x), list(0.1 * (np.exp(skew * x) - 1.1 * skew * x)), skew)
        assert valley.bottom == pytest.approx(math.log(1.1) / skew)
        assert valley.residual == pytest.approx(0.0, abs=1e-12)
        assert residual_with(np.array([valley.bottom]), [valley])[0, 0] < 1e-12


def test_points_on_a_slope_leave_the_interval_open_on_its_far_side() -> None:
    x = np.linspace(0.0, 2.0, 7)
    y = -0.5 * x + 0.01 * np.random.default_rng(1).standard_normal(7)
    interval = fit_valleys([(list(x), list(y))], max_skew=0.0).interval(0)
    assert interval is not None
    assert interval.low > 2.0
    assert interval.high == math.inf


def test_flat_points_have_no_end_on_either_side() -> None:
    x = np.linspace(0.0, 2.0, 7)
    y = 0.01 * np.random.default_rng(3).standard_normal(7)
    interval = fit_valleys([(list(x), list(y))]).interval(0)
    assert interval == Interval(-math.inf, math.inf)


def test_a_hill_has_no_best_size() -> None:
    points = noisy_points(0.0, 0, budgets=BUDGETS[:2])
    upside_down = [
        replace(point, bpb=5.0 / point.bpb) if point.budget == BUDGETS[0] else point
        for point in points
    ]
    optima = fit_laws(upside_down).curves[RATIO].optima
    assert optima[BUDGETS[0]] is None
    assert optima[BUDGETS[1]] is not None


def test_three_sizes_a_budget_leave_valleys_without_intervals() -> None:
    points = noisy_points(NOISE, 0)
    laws = fit_laws([point for i, point in enumerate(points) if i % 7 in (0, 3, 6)])
    estimates = [estimate for estimate in laws.curves[RATIO].optima.values() if estimate]
    assert estimates
    assert all(estimate.interval is None for estimate in estimates)
    assert laws.joint is not None
    assert laws.joint.exponents[PARAMETERS].interval is not None


def test_two_sizes_a_budget_have_no_valley() -> None:
    points = noisy_points(NOISE, 0)
    laws = fit_laws([point for i, point in enumerate(points) if i % 7 in (1, 5)])
    assert laws.curves == {}


def test_five_points_are_fitted_without_intervals() -> None:
    points = noisy_points(0.001, 0, budgets=BUDGETS[:2])
    laws = fit_laws([points[i] for i in (0, 3, 6, 8, 12)])
    assert laws.joint is not None
    assert laws.joint.exponents[PARAMETERS].interval is None


def test_one_budget_has_a_best_size_and_no_exponent() -> None:
    laws = fit_laws(noisy_points(0.003, 0, budgets=BUDGETS[:1]))
    assert laws.joint is None
    assert laws.predict(1e20) is None
    assert inside(laws.curves[RATIO].optima[BUDGETS[0]], CHINCHILLA.best(BUDGETS[0])[RATIO])


def test_the_order_of_points_does_not_matter() -> None:
    points = noisy_points(0.003, 4)
    there, back = fit_laws(points), fit_laws(points[::-1])
    assert there.joint is not None
    assert back.joint is not None
    assert there.joint.exponents[TOKENS].value == pytest.approx(
        back.joint.exponents[TOKENS].value, abs=1e-6
    )
    assert there.curves[RATIO] == back.curves[RATIO]


def test_flops_that_grow_less_than_size_are_allowed_for() -> None:
    """A third of the FLOPs of small models is attention; the best sizes are found by search."""
    law, power = CHINCHILLA, 0.9

    def tokens(size: float, flops: float) -> float:
        return flops / (40 * size**power)

    def best(flops: float) -> float:
        sizes = np.geomspace(1e6, 1e11, 200_001)
        return float(sizes[np.argmin([law.loss(sizes, flops / (40 * sizes**power))])])

    sizes = [best(flops) * factor for flops in (1e18, 1e20) for factor in (0.2, 0.5, 1.1, 3, 7)]
    compute = [1e18] * 5 + [1e20] * 5
    paid = [tokens(size, flops) for size, flops in zip(sizes, compute, strict=True)]
    surface = fit_surface(sizes, paid, compute, list(map(law.loss, sizes, paid)))
    assert surface is not None
    assert surface.gamma == pytest.approx(power)
    assert surface.slope == pytest.approx(
        math.log(best(1e20) / best(1e18)) / math.log(100), abs=2e-4
    )
    assert surface.size_at(math.log(1e18)) == pytest.approx(math.log(best(1e18)), abs=1e-3)


def test_a_surface_of_another_form_is_found_out() -> None:
    assert misfit(laws_of_seed(0.003, 0)) > 0.01
    points = [
        replace(point, bpb=point.bpb * 1.02) if point.budget == BUDGETS[2] else point
        for point in noisy_points(0.003, 0)
    ]
    assert misfit(fit_laws(points)) < 1e-4


def test_depths_that_are_the_same_at_all_budgets_are_fitted_too() -> None:
    laws = fit_laws(noisy_points(0.003, 0, budgets=DEPTH_BUDGETS, same_sizes=True))
    assert laws.joint is not None
    exponent = laws.joint.exponents[PARAMETERS]
    assert inside(exponent, CHINCHILLA.exponents[PARAMETERS])
    for flops in DEPTH_BUDGETS:
        assert inside(laws.joint.optima[flops][RATIO], CHINCHILLA.best(flops)[RATIO])


def test_unlike_exponents_are_found() -> None:
    law = Law(alpha=0.45, beta=0.25, by_size=3000.0, by_tokens=250.0)
    laws = fit_laws(noisy_points(0.001, 0, law=law))
    assert laws.joint is not None
    assert laws.joint.exponents[PARAMETERS].value == pytest.approx(0.25 / 0.7, abs=0.02)


@pytest.mark.parametrize("name", WITHOUT_A_BEST)
def test_where_there_is_no_best_size_none_is_told_from_far_outside(name: str) -> None:
    is_open = []
    for seed in range(4):
        laws = fit_laws(noisy_points(0.01, seed, budgets=BUDGETS[:3], law=WITHOUT_A_BEST[name]))
        assert laws.joint is not None
        sizes = [point.scaling_parameters for point in laws.points]
        for optima in (laws.joint.middle, *laws.joint.optima.values()):
            is_open.append(optima[PARAMETERS].interval == Interval(0.0, math.inf))
            if is_open[-1]:
                continue
            assert min(sizes) / 21 < optima[PARAMETERS].value < max(sizes) * 21
            assert all(inside(estimate, estimate.value) for estimate in optima.values())
            exponent = laws.joint.exponents[PARAMETERS]
            assert inside(exponent, exponent.value)
    assert any(is_open)


def test_what_is_best_at_a_border_or_beyond_has_no_end_on_that_side() -> None:
    laws = laws_of_seed(0.003, 0)
    assert laws.joint is not None
    surface = laws.joint.surface
    for sign in (-1, 1):
        far = surface.size_interval(surface.pivot + sign * 60)
        slope = replace(surface, share=SHARES[sign > 0]).slope_interval()
        for interval, best in ((far, surface.size_at(surface.pivot + sign * 60)), (slope, None)):
            assert interval is not None
            assert (interval.low, interval.high)[sign > 0] == sign * math.inf
            assert math.isfinite((interval.low, interval.high)[sign < 0])
            assert best is None or interval.contains(best)


def test_equal_losses_have_no_best_size() -> None:
    laws = fit_laws([replace(point, bpb=1.25) for point in noisy_points(0.0, 0)])
    assert laws.joint is not None
    assert laws.joint.surface.is_level
    assert laws.joint.middle[RATIO].interval == Interval(0.0, math.inf)
    assert laws.joint.exponents[RATIO].interval == Interval(-math.inf, math.inf)


def test_points_exactly_on_the_surface_have_no_interval() -> None:
    laws = laws_of_seed(0.003, 0)
    assert laws.joint is not None
    exact = replace(laws.joint.surface, squares=0.0)
    assert exact.slope_interval() is None
    assert exact.size_interval(exact.pivot) is None
    assert exact.best_loss_interval(exact.pivot) is None


@pytest.mark.parametrize("bpb", [0.0, math.nan, math.inf])
def test_a_point_without_a_result_is_refused_by_name(bpb: float) -> None:
    points = noisy_points(NOISE, 0)
    points[3] = replace(points[3], bpb=bpb)
    with pytest.raises(DataError, match=re.escape(f"point {points[3].label} has")):
        fit_laws(points)


def test_no_points_are_refused() -> None:
    with pytest.raises(DataError, match="no points"):
        fit_laws([])
