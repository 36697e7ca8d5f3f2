"""Whether a gain is larger than the noise: rarely said without a gain, and said in plain words."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from comparing_tools import compared, side

from nanochat_core.errors import UnknownNameError
from nanochat_core.report.comparing.noise import Sample, difference, holm, needed_repeats
from nanochat_core.report.comparing.sides import metric_of
from nanochat_core.report.comparing.verdicts import conclusion, judge, needed_commands, noise_words

TRIALS = 2_000


def share_told(sizes: Sequence[int], *, gain: float = 0.0, sds: Sequence[float] = (1, 1)) -> float:
    """How often two sides of normal numbers are told apart."""
    generator = np.random.default_rng(20261123)
    draws = [
        generator.normal(offset, sd, (TRIALS, size))
        for offset, sd, size in zip((0.0, gain), sds, sizes, strict=True)
    ]
    told = 0
    for one, other in zip(*draws, strict=True):
        a, b = Sample.of(list(one)), Sample.of(list(other))
        found = difference(b.mean - a.mean, a, b, None)
        told += found is not None and found.p < 0.05
    return told / TRIALS


@pytest.mark.parametrize("sizes", [(3, 3), (2, 2), (5, 2), (1, 3), (4, 1), (1, 2), (8, 8)])
def test_without_a_gain_one_is_told_in_about_one_of_twenty_cases(sizes: tuple[int, int]) -> None:
    assert share_told(sizes) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / TRIALS)


def test_sides_that_scatter_differently_are_no_false_gain_either() -> None:
    assert share_told((3, 5), sds=(1, 4)) <= 0.08
    assert share_told((5, 5), sds=(1, 4)) <= 0.08


def test_a_gain_of_several_deviations_is_told_by_few_repeats() -> None:
    assert share_told((3, 3), gain=5.0) > 0.9
    assert share_told((1, 4), gain=8.0) > 0.9


def test_of_many_comparisons_one_false_gain_is_found_in_one_of_twenty_cases() -> None:
    generator, trials, false = np.random.default_rng(7), 300, 0
    for _ in range(trials):
        sides = [side(letter, list(generator.normal(2, 0.01, 3))) for letter in "ABCDE"]
        false += any(v.kind != "noise" for v in judge(compared(*sides)))
    assert false / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_p_and_interval_are_those_of_the_books() -> None:
    # Student's sleep data (1908), as R's t.test has it without equal variances.
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    other = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    a, b = Sample.of(one), Sample.of(other)
    found = difference(a.mean - b.mean, a, b, None)
    assert found is not None
    assert found.value / found.stderr == pytest.approx(-1.8608, abs=1e-4)
    assert found.dof == pytest.approx(17.776, abs=1e-3)
    assert found.p == pytest.approx(0.07939, abs=1e-5)
    assert found.value - found.half_width() == pytest.approx(-3.3655, abs=1e-4)


def test_holm_adjusts_p_values_and_tests_each_at_its_level() -> None:
    # 3 * 0.01, 2 * 0.02, and the last not below the one before it.
    found = holm([0.02, 0.04, 0.01])
    assert [round(p, 12) for p, _ in found] == [0.04, 0.04, 0.03]
    assert [level for _, level in found] == [0.05 / 2, 0.05, 0.05 / 3]
    for p_values in ([0.03, 0.04, 0.049], [0.001, 0.03, 0.9], [0.5]):
        for p, (adjusted, level) in zip(p_values, holm(p_values), strict=True):
            assert (p < level) == (adjusted < 0.05)


def test_the_interval_leaves_out_zero_exactly_where_a_gain_is_told() -> None:
    generator, kinds = np.random.default_rng(3), set()
    for _ in range(60):
        means = generator.normal(2, 0.015, 4)
        sides = [
            side(letter, list(generator.normal(mean, 0.01, 3)))
            for letter, mean in zip("ABCD", means, strict=True)
        ]
        for verdict in judge(compared(*sides)):
            assert verdict.interval is not None
            low, high = verdict.interval
            assert (low > 0) == (verdict.kind == "better")
            assert (high < 0) == (verdict.kind == "worse")
            kinds.add(verdict.kind)
    assert kinds == {"better", "worse", "noise"}


def test_a_gain_beyond_the_noise_is_said_to_be_one() -> None:
    a, b = side("A", [1.500, 1.502, 1.498]), side("B", [1.450, 1.452, 1.448])
    (better,) = judge(compared(a, b))
    assert better.kind == "better"
    assert better.gain == pytest.approx(0.05)
    assert better.interval is not None
    assert 0 < better.interval[0] < 0.05 < better.interval[1]
    assert better.words.startswith(
        "B is 0.0500 bits per byte better than A (95 % interval of the gain +0.0"
    )
    assert better.words.endswith("larger than the noise.")
    (worse,) = judge(compared(b, a))
    assert (worse.kind, worse.gain) == ("worse", pytest.approx(-0.05))
    assert "worse than" in worse.words


def test_of_scores_more_is_better() -> None:
    (verdict,) = judge(
        compared(side("A", [0.20, 0.21, 0.22]), side("B", [0.40, 0.41, 0.42]), metric="core")
    )
    assert verdict.kind == "better"


def test_a_gain_inside_the_noise_says_how_many_repeats_would_tell_it() -> None:
    (verdict,) = judge(compared(side("A", [1.50, 1.51, 1.52]), side("B", [1.495, 1.505, 1.515])))
    assert verdict.kind == "noise"
    assert "inside the noise" in verdict.words
    assert "repeats of each" in verdict.words


def test_a_gain_that_took_more_flops_is_said_to_have_cost_them() -> None:
    a, b = side("A", [1.500, 1.502, 1.498]), side("B", [1.450, 1.452, 1.448])
    costly = replace(b, repeats=tuple(replace(each, flops=1e12) for each in b.repeats))
    assert "B took 2.5 times the FLOPs of A." in judge(compared(a, costly))[0].words
    assert "FLOPs" not in judge(compared(a, b))[0].words


def test_repeats_of_one_side_lend_their_spread_to_the_other_and_that_is_said() -> None:
    comparison = compared(side("A", [1.500, 1.502, 1.498]), side("B", [1.40]))
    (verdict,) = judge(comparison)
    assert verdict.kind == "better"
    assert "if B scatters as A does, larger than the noise. B has one run" in verdict.words
    (noise,) = judge(compared(side("A", [1.500, 1.502, 1.498]), side("B", [1.499])))
    assert "inside the noise. B has one run: it is taken to scatter as A does" in noise.words
    # And of two that have one run each, those of a third do.
    verdicts = judge(compared(side("A", [1.5]), side("B", [1.4]), side("C", [1.50, 1.502, 1.498])))
    assert [v.kind for v in verdicts] == ["better", "noise"]
    assert "if both scatter as the other sides do, larger than the noise." in verdicts[0].words


def test_a_single_run_against_repeats_is_told_with_a_condition_and_the_command_for_repeats() -> (
    None
):
    # Why: a recipe that scatters more is taken for a better or worse one far too often.
    assert share_told((3, 1), sds=(1, 2)) > 0.1
    repeated, single = [1.500, 1.502, 1.498], [1.40]
    for first, other, one in ((repeated, single, "B"), (single, repeated, "A")):
        comparison = compared(side("A", first), side("B", other))
        verdicts = judge(comparison)
        assert verdicts[0].kind in ("better", "worse")
        assert verdicts[0].assumed == (one,)
        assert f"if {one} scatters as" in verdicts[0].words
        assert conclusion(verdicts[0]).endswith("LARGER THAN THE NOISE, IF ALL SCATTER ALIKE")
        command = f"{one}: nanochat run sweep --preset {one}"
        assert needed_commands(comparison, verdicts) == [command]
    both = compared(side("A", repeated), side("B", [1.40, 1.402]))
    assert judge(both)[0].assumed == ()
    assert needed_commands(both, judge(both)) == []


def test_single_runs_cannot_be_told_apart_and_the_commands_for_repeats_are_given() -> None:
    comparison = compared(side("A", [1.5]), side("B", [1.2]))
    verdicts = judge(comparison)
    assert verdicts[0].kind == "unknown"
    assert verdicts[0].interval is None
    assert conclusion(verdicts[0]) == "CANNOT BE TOLD"
    assert needed_commands(comparison, verdicts) == [
        "A: nanochat run sweep --preset A",
        "B: nanochat run sweep --preset B",
    ]


def test_repeats_that_are_equal_to_the_last_digit_are_not_taken_for_certainty() -> None:
    (verdict,) = judge(compared(side("A", [0.25, 0.25]), side("B", [0.26, 0.26]), metric="demo"))
    assert verdict.kind == "unknown"
    assert "equal to the last digit" in verdict.words


def test_pairs_of_equal_seeds_are_told_beside_the_verdict() -> None:
    # Seeds move both sides alike, far more than the gain.
    (verdict,) = judge(compared(side("A", [1.5, 1.6, 1.7]), side("B", [1.49, 1.589, 1.691])))
    assert verdict.kind == "noise"
    assert verdict.paired is not None
    number, gain, (low, high) = verdict.paired
    assert (number, gain) == (3, pytest.approx(0.01))
    assert 0 < low < high


def test_one_side_alone_says_how_large_the_noise_is() -> None:
    comparison = compared(side("A", [1.50, 1.51, 1.52]))
    assert judge(comparison) == []
    assert "standard deviation of 0.0100" in noise_words(comparison.sides[0], comparison.metric)
    single = compared(side("A", [1.5]))
    assert "one run" in noise_words(single.sides[0], single.metric)
    assert needed_commands(single, []) == ["A: nanochat run sweep --preset A"]


def test_more_repeats_are_needed_for_smaller_gains() -> None:
    spread = Sample.of([1.50, 1.51, 1.52]).spread
    assert spread is not None
    counts = [needed_repeats(gain, spread) for gain in (0.1, 0.03, 0.01)]
    assert counts == sorted(filter(None, counts))
    assert needed_repeats(1e-6, spread) is None


def test_a_metric_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    assert metric_of("val/bpb") is metric_of("bpb")
    with pytest.raises(UnknownNameError, match="bpb, core, demo"):
        metric_of("loss")
