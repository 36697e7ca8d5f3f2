"""What `nanochat verify-resume` plans: when it kills, what it trains, what it refuses."""

import random
import tempfile
from pathlib import Path

import pytest

from flows.interrupted import LAST_KILL_AT, Compared, draw_kills, made_up_texts
from flows.verifying import CHECKPOINT_EVERY, plan_trial, ranks_of, report, verify
from nanochat_core.errors import BatchSizeError, ConfigError, UnknownNameError

EAGER = {"compile": False, "device": "cpu"}


def test_kills_fall_into_parts_of_the_run_and_change_their_kind() -> None:
    for seed in range(50):
        kills = draw_kills(4, 100, random.Random(seed), first=6)
        steps = [kill.step for kill in kills]
        assert steps == sorted(set(steps))
        assert 6 <= steps[0] < 23 <= steps[1] < 41
        assert steps[-1] <= 100 * LAST_KILL_AT
        assert [kill.kind for kill in kills] == ["rank", "group", "rank", "group"]
    assert draw_kills(2, 100, random.Random(1), first=6) == draw_kills(
        2, 100, random.Random(1), first=6
    )
    assert draw_kills(0, 10, random.Random(0), first=6) == ()


def test_a_run_too_short_for_its_kills_is_refused() -> None:
    with pytest.raises(ConfigError, match="8 steps have no room for 2 kills"):
        draw_kills(2, 8, random.Random(0), first=CHECKPOINT_EVERY + 1)


@pytest.mark.parametrize("text", ["", "0", "4,x", "4,,1", "-2"])
def test_numbers_of_ranks_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--ranks"):
        ranks_of(text)


def test_every_start_has_its_number_of_ranks_and_the_same_micro_batches() -> None:
    trial = plan_trial(
        "tiny",
        kills=3,
        num_steps=60,
        ranks=ranks_of("4,2,1"),
        seed=0,
        compute_dtype="float32",
        execution=EAGER,
    )
    executions = [trial.execution_of(start) for start in range(4)]
    assert [execution.ranks for execution in executions] == [4, 2, 1, 1]
    assert {execution.device_batch_size for execution in executions} == {1}
    assert {execution.reduction for execution in executions} == {"exact"}
    assert trial.recipe.num_iterations == 60


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"shape": "big"}, UnknownNameError, "there is no preset 'big'; there is tiny, demo-shape"),
        ({"ranks": (3,)}, BatchSizeError, "--ranks 3 cannot share 8 rows"),
        ({"compute_dtype": "int8"}, UnknownNameError, "compute_dtype='int8'"),
        ({"execution": {"device": "abacus"}}, UnknownNameError, "device='abacus'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_made(
    changes: dict[str, object], error: type[ConfigError], message: str
) -> None:
    given = {
        "shape": "tiny",
        "kills": 2,
        "num_steps": 40,
        "ranks": (1,),
        "seed": 0,
        "compute_dtype": "float32",
        "execution": EAGER,
        **changes,
    }
    with pytest.raises(error, match=message):
        plan_trial(given.pop("shape"), **given)  # type: ignore[arg-type]


def test_the_verdict_names_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    same = Compared("weights", {"wte": "1"}, {"wte": "1"})
    assert report([same])
    assert "verdict: bit-identical" in capsys.readouterr().out
    names = {f"m{number}": "1" for number in range(7)}
    assert not report([same, Compared("moments", names, {**names, "m3": "2", "more": "1"})])
    told = capsys.readouterr().out
    assert "2 differ" in told
    assert told.endswith("verdict: the runs differ\n  moments: m3, more\n")


def test_a_proof_that_breaks_off_says_where_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_trial: object, _folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("flows.verifying.run_both", stopped)
    with pytest.raises(KeyboardInterrupt):
        verify(
            "tiny",
            kills=0,
            num_steps=10,
            ranks="1",
            seed=0,
            compute_dtype="float32",
            execution=EAGER,
        )
    (folder,) = tmp_path.iterdir()
    assert capsys.readouterr().err == f"what was run until then is in {folder}\n"


def test_the_made_up_text_is_always_the_same_and_long_enough() -> None:
    texts = made_up_texts(20_000, 1_000)
    assert texts == made_up_texts(20_000, 1_000)
    assert sum(len(text.split()) for text in texts) >= 20_000
