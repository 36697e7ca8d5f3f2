"""Two SIGKILLs at random steps, in every number format, eager and compiled, and on fewer ranks.

The moments are drawn anew each time and printed: `pytest -rP`, or look at a failure.
"""

import random
from pathlib import Path

import pytest

from flows.interrupted import INTERRUPTED, STRAIGHT, Trial, compare, make_inputs, run
from flows.verifying import plan_trial
from nanochat_core.config.job import JobSpec
from tests.e2e.line_tools import tell

pytestmark = [pytest.mark.xdist_group("verify-resume"), pytest.mark.timeout(1_200)]

NUM_STEPS = 40
KILLS = 2
CELLS = [
    pytest.param("float32", False, marks=pytest.mark.e2e),
    pytest.param("float16", False, marks=pytest.mark.e2e),
    pytest.param("bfloat16", False, marks=pytest.mark.long),
    pytest.param("float32", True, marks=pytest.mark.long),
    pytest.param("bfloat16", True, marks=pytest.mark.long),
    pytest.param("float16", True, marks=pytest.mark.long),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Text and tokens for all cells."""
    return make_inputs(tmp_path_factory.mktemp("inputs"), 512, NUM_STEPS * 512)


def drawn_trial(dtype: str, *, compiled: bool, ranks: tuple[int, ...] = (1,)) -> Trial:
    seed = random.SystemRandom().randrange(2**32)
    trial = plan_trial(
        "tiny",
        kills=KILLS,
        num_steps=NUM_STEPS,
        ranks=ranks,
        seed=seed,
        compute_dtype=dtype,
        execution={"compile": compiled, "device": "cpu"},
    )
    tell(f"seed {seed}: {', '.join(str(kill) for kill in trial.kills)}")
    return trial


def check_bit_identical(trial: Trial, inputs: dict[str, str], folder: Path) -> None:
    straight, interrupted = folder / STRAIGHT, folder / INTERRUPTED
    assert run(trial, inputs, straight, ()).resumed_after == []
    told = run(trial, inputs, interrupted, trial.kills)
    assert len(told.killed) == KILLS
    assert len(told.resumed_after) == KILLS, "a start did not go on from a checkpoint"
    tell(f"{told}")
    parts = compare(straight, interrupted)
    assert {part.name: part.different for part in parts if part.different} == {}
    assert {"weights", "moments", "next batches", "metrics lines"} <= {p.name for p in parts}


@pytest.mark.parametrize(("dtype", "compiled"), CELLS)
def test_two_kills_change_no_bit(
    inputs: dict[str, str], tmp_path: Path, dtype: str, compiled: bool
) -> None:
    check_bit_identical(drawn_trial(dtype, compiled=compiled), inputs, tmp_path)


@pytest.mark.parametrize(
    ("dtype", "compiled"),
    [
        pytest.param("float32", False, marks=pytest.mark.e2e),
        pytest.param("bfloat16", True, marks=pytest.mark.long),
    ],
)
def test_four_ranks_then_two_then_one_change_no_bit(
    inputs: dict[str, str], tmp_path: Path, dtype: str, compiled: bool
) -> None:
    trial = drawn_trial(dtype, compiled=compiled, ranks=(4, 2, 1))
    assert trial.execution.reduction == "exact"
    check_bit_identical(trial, inputs, tmp_path)
    ends = (JobSpec.load(tmp_path / name / "work" / "job.json") for name in (STRAIGHT, INTERRUPTED))
    assert [job.execution.ranks for job in ends] == [4, 1]
