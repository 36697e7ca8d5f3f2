"""From what a sweep is asked for to its points: labels, parameters, and what is refused."""

import os
from typing import Any

import pytest

from flows.parameters import ResolvedRun, check, parse_parameters
from flows.sweeps.parameters import AnySweep, parse_sweep
from flows.sweeps.points import Point, check_points, expand, notes
from flows.sweeps.values import parse_numbers, parse_sweep_assignments, spelled, split_values
from nanochat_core.data.recipes import (
    FileDigest,
    HarvestSource,
    HubSource,
    MixturePart,
    MixtureSource,
    ShardsRecipe,
)
from nanochat_core.errors import ConfigError, UnknownNameError
from nanochat_core.report.sweeps.recipe import SweepKind

SHARED = {
    "pretrain.schedule.cosine_weight_decay": "false",
    "pretrain.schedule.warmdown_fraction": "0.2",
}


def asked(kind: SweepKind = "sweep", **values: Any) -> AnySweep:
    return parse_sweep(kind, {"preset": "tiny", **values})


def points(kind: SweepKind = "sweep", **values: Any) -> list[Point]:
    return expand(asked(kind, **values))


def labels(kind: SweepKind = "sweep", **values: Any) -> list[str]:
    return [point.label for point in points(kind, **values)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2,3", ["1", "2", "3"]),
        ("0.01", ["0.01"]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("{'x': [1,2]} , 4", ["{'x': [1,2]}", "4"]),
        ("it's,that's", ["it's", "that's"]),
        ("1, 'a,b'", ["1", "'a,b'"]),
        ("['a]', 'b'],c", ["['a]', 'b']", "c"]),
        ("'tis,so", ["'tis", "so"]),
        ("", [""]),
    ],
)
def test_commas_part_values_but_not_inside_of_brackets_and_quotes(
    text: str, parts: list[str]
) -> None:
    assert split_values(text) == parts


def test_set_with_several_values_varies_and_with_one_holds_for_all() -> None:
    fixed, varied = parse_sweep_assignments(
        ["pretrain.seed=1,2", "sft.epochs=2", "pretrain.fp8=true,false", "a.b=[1,2]"]
    )
    assert fixed == {"sft.epochs": "2", "a.b": "[1,2]"}
    assert varied == {"pretrain.seed": (1, 2), "pretrain.fp8": (True, False)}
    with pytest.raises(ConfigError, match=r"--set a.b=1,2$"):
        parse_sweep_assignments(["a.b=1,,2"])
    with pytest.raises(ConfigError, match="expected numbers with commas, got 'x'"):
        parse_numbers("--depths", "1,x")
    assert parse_numbers("--budgets", "1e12,3") == (1e12, 3)


@pytest.mark.parametrize("text", ['"a,b"', "'a,b'"])
def test_quotes_around_a_value_are_no_part_of_it(text: str) -> None:
    assert parse_sweep_assignments([f"a.b={text}"]) == ({"a.b": "a,b"}, {})
    assert parse_sweep_assignments([f"a.b={text},c"]) == ({}, {"a.b": ("a,b", "c")})
    assert parse_sweep_assignments(["a.b='a' or 'b'"])[0] == {"a.b": "'a' or 'b'"}


def test_a_value_reads_the_same_however_it_was_written() -> None:
    values = (0.01, 0.010, 2, 2.0, 1e12, 3.5e-7, 123456789.5, True, "SL")
    assert [spelled(value) for value in values] == [
        *("0.01", "0.01", "2", "2", "1e12", "3.5e-7", "123456789.5", "true", "SL"),
    ]


def test_points_are_all_combinations_the_last_name_changing_fastest() -> None:
    assert labels(vary={"pretrain.depth": (1, 2), "pretrain.seed": (7, 8)}) == [
        "pretrain.depth=1,pretrain.seed=7",
        "pretrain.depth=1,pretrain.seed=8",
        "pretrain.depth=2,pretrain.seed=7",
        "pretrain.depth=2,pretrain.seed=8",
    ]
    assert labels("miniseries", depths=(1, 2)) == ["depth=1", "depth=2"]
    assert labels("scaling_laws", budgets=(1e9, 2e9), depths=(1,)) == [
        "pretrain.target_flops=1e9,depth=1",
        "pretrain.target_flops=2e9,depth=1",
    ]


def test_a_point_is_the_ordinary_run_with_these_values() -> None:
    (point,) = points("miniseries", depths=(3,), overrides={"pretrain.seed": 5})
    ordinary = parse_parameters(
        {
            "preset": "tiny",
            "depth": 3,
            "overrides": {"pretrain.seed": 5},
            "stop_after": "base_eval",
        }
    )
    assert point.parameters == ordinary
    (chatty,) = points("miniseries", depths=(3,), chat=True)
    assert chatty.parameters.stop_after == "chat_eval_rl"


def test_a_budget_takes_the_place_of_the_steps_of_the_preset() -> None:
    (point,) = points("scaling_laws", budgets=(2e9,), depths=(2,))
    recipe = check(point.parameters, {}).preset.recipes.pretrain
    assert (recipe.num_iterations, recipe.target_flops, recipe.depth) == ("auto", 2e9, 2)


def test_tracked_points_have_names_of_their_own() -> None:
    named = points("miniseries", depths=(1, 2), tracker="wandb", run="try")
    assert [point.parameters.run for point in named] == ["try-depth=1", "try-depth=2"]
    assert {point.parameters.run for point in points("miniseries", depths=(1,), run="dummy")} == {
        "dummy"
    }


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("sweep", {}, "nothing is varied"),
        ("miniseries", {}, "no depths given; give some, as in --depths 1,2,3"),
        ("scaling_laws", {"depths": (1,)}, "no budgets given"),
        ("sweep", {"vary": {"pretrain.seed": ()}}, "pretrain.seed: give at least one value"),
        ("sweep", {"vary": {"pretrain.seed": (1, 1)}}, "pretrain.seed=1 is asked for 2 times"),
        ("miniseries", {"depths": (1, 0)}, "whole number from 1"),
        (
            "sweep",
            {"vary": {"pretrain.depth": (1, 2)}, "depth": 2},
            "depth=2 is set, and pretrain.depth is varied",
        ),
        (
            "miniseries",
            {"depths": (1, 2), "overrides": {"pretrain.depth": 2}},
            "depth is varied, and pretrain.depth is set",
        ),
        (
            "scaling_laws",
            {"budgets": (1e9,), "depths": (1,), "overrides": {"pretrain.num_iterations": 9}},
            "the budget says how many steps",
        ),
        ("sweep", {"vary": {"pretrain.seed": tuple(range(1001))}}, "1,001 points"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    kind: SweepKind, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_points(points(kind, **values), {})


def test_one_bad_point_is_named_before_anything_runs() -> None:
    bad = points(vary={"pretrain.tokens_per_step": (512, 500)})
    with pytest.raises(ConfigError, match=r"point pretrain\.tokens_per_step=500: .*use 448"):
        check_points(bad, {})
    with pytest.raises(UnknownNameError, match=r"point pretrain\.sed=1: .*did you mean seed"):
        check_points(points(vary={"pretrain.sed": (1, 2)}), {})
    with pytest.raises(UnknownNameError, match="did you mean depths"):
        asked("miniseries", depth=3)


def said(**values: Any) -> list[str]:
    found = points(**values)
    return notes(found, check_points(found, {}))


def test_points_that_compute_the_same_are_noted() -> None:
    (note,) = said(vary={"pretrain.device_batch_size": (2, 4)})
    assert "pretrain.device_batch_size=4 computes the same as pretrain.device_batch_size=2" in note


def test_what_no_point_enters_makes_no_difference_and_the_note_tells_of_chat() -> None:
    epochs = {"sft.epochs": (1, 2)}
    (note,) = said(vary=epochs)
    assert "points end after base_eval" in note
    assert "(sft.epochs); give --chat" in note
    assert said(vary=epochs, chat=True) == []
    both = said(vary={**epochs, "pretrain.seed": (1, 2)})
    assert len(both) == 2
    assert all("computes the same as sft.epochs=1," in note for note in both)


def test_lengths_that_share_nothing_are_noted_with_what_would_help() -> None:
    decay = {"pretrain.optimizer.matrices.weight_decay": 0.1}
    lengths = {"pretrain.num_iterations": (20, 30)}
    (note,) = said(vary=lengths, overrides=decay)
    assert "--set pretrain.schedule.cosine_weight_decay=false" in note
    assert said(vary=lengths, overrides={**decay, **SHARED}) == []
    assert said(vary={"pretrain.seed": (1, 2)}, overrides=decay) == []


def test_points_that_read_different_numbers_of_shards_are_noted_with_what_would_help() -> None:
    found = points("miniseries", depths=(1, 2))
    files = tuple(FileDigest(name=f"{i}", sha256=f"{i}" * 64, bytes=1) for i in range(3))
    runs = [
        with_published(run, files[-count - 1 :])
        for run, count in zip(check_points(found, {}), (1, 2), strict=True)
    ]
    (note,) = notes(found, runs)
    assert "points read 1 or 2 shards" in note
    assert "--set shards.num_shards=2 lets all read the same" in note


def test_so_are_points_that_read_different_numbers_of_shards_of_a_part() -> None:
    found = points("miniseries", depths=(1, 2))
    files = tuple(FileDigest(name=f"{i}", sha256=f"{i}" * 64, bytes=1) for i in range(3))
    runs = check_points(found, {})
    mixed = [
        with_published(run, files[-n:], is_part=True) for run, n in zip(runs, (2, 3), strict=True)
    ]
    (note,) = notes(found, mixed)
    assert "points read 1 or 2 shards of set" in note
    assert "num_shards" not in note, "which is not the number of a part"
    same = [with_published(run, files, is_part=True) for run in runs]
    assert notes(found, same) == []


def with_published(
    run: ResolvedRun, files: tuple[FileDigest, ...], *, is_part: bool = False
) -> ResolvedRun:
    source: HubSource | MixtureSource = HubSource(files=files)
    if is_part:
        docs = MixturePart(name="docs", source=HarvestSource(versions={}, python=""), weight=1)
        source = MixtureSource(parts=(MixturePart(name="set", source=source, weight=1), docs))
    shards = ShardsRecipe(source=source, num_shards=1 if is_part else len(files) - 1)
    recipes = run.preset.recipes.model_copy(update={"shards": shards})
    preset = run.preset.model_copy(update={"recipes": recipes})
    return run.model_copy(update={"preset": preset})


def test_an_unknown_preset_is_told_before_there_are_points() -> None:
    with pytest.raises(UnknownNameError, match=r"^no preset 'nope'; "):
        asked(preset="nope", vary={"pretrain.seed": (1, 2)})


def test_every_point_of_a_large_sweep_is_checked_in_little_time() -> None:
    start = os.times().user
    assert len(check_points(points(vary={"pretrain.seed": tuple(range(50))}), {})) == 50
    assert os.times().user - start < 2
