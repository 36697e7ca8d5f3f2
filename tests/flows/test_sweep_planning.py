"""What a sweep plans: its points as ordinary runs, and before them what several of them share."""

from pathlib import Path
from typing import Any

import pytest
from finished_runs import LAPTOP, finish, open_store
from many_tools import Reads

from flows.forecast.machine import machine_of
from flows.parameters import resolve
from flows.sweeps.eta import TimeLeft
from flows.sweeps.parameters import parse_sweep
from flows.sweeps.planning import (
    PlannedPoint,
    num_steps,
    plan_sweep,
    plan_words,
    steps_before,
    with_times,
)
from flows.sweeps.points import expand
from nanochat_core.artifacts.store import ArtifactStore
from tests.data.hub_server import make_shards

FREE = {
    "pretrain.schedule.cosine_weight_decay": False,
    "pretrain.schedule.warmdown_fraction": 0.2,
}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {i} of a text, {i * i} words long." for i in range(99)))
    return str(path)


def plan(text: str, store: str, **values: Any) -> list[PlannedPoint]:
    asked = parse_sweep("sweep", {"preset": "tiny", "source": (text,), "store": store, **values})
    return plan_sweep(expand(asked), {}, ArtifactStore(store))


def test_lengths_share_a_chain_of_beginnings_that_are_ordinary_runs(
    text: str, tmp_path: Path
) -> None:
    lengths = {"pretrain.num_iterations": (20, 30, 40)}
    planned = plan(text, str(tmp_path / "store"), vary=lengths, overrides=FREE)
    assert [num_steps(each.run) for each in planned] == [16, 24, 20, 30, 40]
    assert [each.point.is_beginning for each in planned] == [True] * 2 + [False] * 3
    assert [each.after for each in planned] == [(), (0,), (0,), (0, 1), (0, 1)]
    assert [each.point.label for each in planned[:2]] == [
        "first 16 steps of pretrain.num_iterations=20 and 2 more",
        "first 24 steps of pretrain.num_iterations=30 and 1 more",
    ]
    assert all(resolve(each.point.parameters, {}) == each.run for each in planned[:1])
    first = planned[0].run
    assert first.stations[-1] == "pretrain"
    assert first.preset.recipes.pretrain.schedule.warmdown_fraction == 0.0
    # What the issue asks for: 2 : 3 : 4 with a decay of 20 % costs 60 % or less.
    own = sum(num_steps(each.run) - steps_before(each, planned) for each in planned)
    assert (own, 20 + 30 + 40) == (50, 90)
    assert plan_words(planned) == (
        "3 points; first 2 beginnings that they share, so 50 steps are made instead of 90"
    )


@pytest.mark.parametrize(
    "values",
    [
        {"overrides": {**FREE, "pretrain.share_beginnings": False}},
        {"overrides": {**FREE, "pretrain.schedule.warmdown_fraction": 1.0}},
        {"vary": {"pretrain.seed": (1, 2)}, "overrides": FREE},
        {
            "vary": {"pretrain.num_iterations": (20, 30), "tokenizer.vocab_size": (300, 301)},
            "only": ("tokenizer.vocab_size=300", "tokenizer.vocab_size=301"),
            "overrides": FREE,
        },
    ],
)
def test_beginnings_are_planned_only_where_runs_can_share_them(
    text: str, tmp_path: Path, values: dict[str, Any]
) -> None:
    vary = {"vary": {"pretrain.num_iterations": (20, 30)}, **values}
    wanted = vary.pop("only", ())
    planned = plan(text, str(tmp_path / "store"), **vary)
    shared = [each.point.label for each in planned if each.point.is_beginning]
    assert len(shared) == len(wanted), "those of one tokenizer share, those of two do not"
    assert all(name in label for name, label in zip(wanted, shared, strict=True))


@pytest.fixture
def published(tmp_path: Path) -> str:
    """A folder of many small published shards."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name, data in make_shards(9).items():
        (folder / name).write_bytes(data)
    return str(folder)


def test_a_beginning_reads_as_many_published_shards_as_its_users(
    published: str, tmp_path: Path
) -> None:
    planned = plan(
        "",
        str(tmp_path / "store"),
        source=(f"shards:{published}",),
        vary={"pretrain.num_iterations": (40, 44)},
        overrides={**FREE, "pretrain.data.max_epochs": 0.5},
    )
    assert [each.after for each in planned] == [(), (0,), (0,)]
    shards = [each.run.preset.recipes.shards for each in planned]
    assert [each.num_shards for each in shards] == [2, 2, 2]
    assert shards[0] == shards[1] == shards[2]


def test_a_beginning_that_would_read_other_text_is_not_planned(
    text: str, published: str, tmp_path: Path
) -> None:
    def planned(*lengths: int) -> list[PlannedPoint]:
        return plan(
            "",
            str(tmp_path / "store"),
            source=(f"shards:{published}@1", f"{text}@1"),
            vary={"pretrain.num_iterations": lengths},
            overrides={**FREE, "pretrain.data.max_epochs": 0.5},
        )

    # 48 steps need one shard of the part that is published, and 60 need two.
    longer = planned(60, 64)
    assert [each.after for each in longer] == [(), ()]
    assert plan_words(longer) == "2 points"
    assert [each.after for each in planned(40, 44)] == [(), (0,), (0,)]


def test_what_is_in_the_store_is_not_shared_and_takes_no_time(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    machine = machine_of({"hardware": LAPTOP})
    finish(store, overrides={**FREE, "pretrain.num_iterations": 30})
    values: dict[str, Any] = {"preset": "tiny", "store": store.url, "overrides": FREE}

    def planned(*lengths: int) -> list[PlannedPoint]:
        asked = parse_sweep("sweep", {**values, "vary": {"pretrain.num_iterations": lengths}})
        return with_times(plan_sweep(expand(asked), {}, store), store, machine)

    assert [(each.point.is_beginning, each.seconds) for each in planned(30)] == [(False, 0.0)]
    done, new = planned(30, 40)
    assert done.seconds == 0.0
    assert (new.seconds or 0) > 0
    assert plan_words([done, new]) == "2 points, 1 of them made already"
    assert [each.point.is_beginning for each in planned(30, 40, 50)] == [True, False, False, False]


def test_what_points_share_is_counted_once_in_the_time_they_take(text: str, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    machine = machine_of({"hardware": LAPTOP})
    seeds = plan(text, store.url, vary={"pretrain.seed": (1, 2)})
    first, second = (each.seconds or 0.0 for each in with_times(seeds, store, machine))
    assert 0 < second < first
    same = plan(text, store.url, vary={"pretrain.device_batch_size": (2, 4)})
    assert [each.point.is_beginning for each in same] == [False, False]
    timed = with_times(same, store, machine)
    assert timed[1].seconds == 0.0
    assert plan_words(timed) == "2 points", "none is made already"
    both = {"pretrain.num_iterations": (20, 30), "pretrain.device_batch_size": (2, 4)}
    words = plan_words(plan(text, store.url, vary=both, overrides=FREE))
    assert words.endswith("so 34 steps are made instead of 50")
    level = {**FREE, "pretrain.schedule.warmdown_fraction": 0.0}
    lengths = {"pretrain.num_iterations": (20, 30)}
    words = plan_words(plan(text, store.url, vary=lengths, overrides=level))
    assert words.endswith("so 30 steps are made instead of 50"), "the beginning is a point itself"


def test_the_records_of_the_store_are_read_once_for_all_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    finish(store)
    reads = Reads(monkeypatch)

    def runs_read(*seeds: int) -> int:
        before = reads.runs
        asked = {"preset": "tiny", "store": store.url, "vary": {"pretrain.seed": seeds}}
        planned = plan_sweep(expand(parse_sweep("sweep", asked)), {}, store)
        with_times(planned, store, machine_of({"hardware": LAPTOP}))
        return reads.runs - before

    assert runs_read(1, 2, 3, 4) == runs_read(5) > 0


def test_the_time_left_follows_how_right_the_predictions_were() -> None:
    left = TimeLeft([10.0, 20.0, 30.0])
    assert left.seconds == 60.0
    left.ended(0, 20.0, was_made=True)
    assert left.seconds == 100.0
    left.ended(1, 0.1, was_made=False)
    assert left.seconds == 60.0
    left.ended(2, 60.0, was_made=True)
    assert left.seconds == 0.0
    assert TimeLeft([10.0, None]).seconds is None
    assert TimeLeft([10.0, 10.0, 10.0, 10.0], jobs=2).seconds == 20.0
    assert TimeLeft([1.0, 10.0], jobs=2).seconds == 10.0
