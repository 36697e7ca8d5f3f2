"""The rows of a sweep, read from artifacts that a real store published."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from sweep_points import Point, publish_points, scaling_parameters

from nanochat_core.errors import ConfigError
from nanochat_core.report.sweeps.recipe import SweepPoint, SweepRecipe
from nanochat_core.report.sweeps.rows import PointRow, read_rows

THREE_DEPTHS = tuple(Point({"depth": d}, bpb=2.5 - d / 10, depth=d) for d in (1, 2, 3))


def rows_of(folder: Path, *points: Point, price: float = 0.0) -> list[PointRow]:
    made = publish_points(folder, points, price_per_hour=price)
    return read_rows(made.manifests, made.folders, made.recipe)


def test_a_row_holds_what_its_artifacts_say(tmp_path: Path) -> None:
    first, second, third = rows_of(tmp_path, *THREE_DEPTHS)
    assert [row.label for row in (first, second, third)] == ["depth=1", "depth=2", "depth=3"]
    assert (third.depth, third.steps, third.tokens) == (3, 30, 512 * 30)
    assert third.scaling_parameters == scaling_parameters(3)
    assert third.tokens_per_parameter == 512 * 30 / scaling_parameters(3)
    assert third.bpb == pytest.approx(2.2)
    assert (third.score_name, third.score, third.score_stderr) == ("demo_score", 0.25, 0.02)
    assert (third.chat_score_name, third.chat_score) == ("", None)
    assert third.refs["pretrain"].startswith("pretrain/")
    assert len({row.refs["base_eval"] for row in (first, second, third)}) == 3


def test_core_is_the_score_where_it_was_measured(tmp_path: Path) -> None:
    made = publish_points(tmp_path, THREE_DEPTHS[:1])
    scores = made.folders["000-base_eval"] / "scores.json"
    scores.write_text('{"val/bpb": 2.4, "core_metric": 0.11, "demo_score": 0.3}')
    (row,) = read_rows(made.manifests, made.folders, made.recipe)
    assert (row.score_name, row.score, row.score_stderr) == ("core_metric", 0.11, None)


def test_a_point_costs_the_time_of_all_its_artifacts(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, Point({"depth": 1}, 2.0, seconds=900, chat=0.4), price=4.0)
    assert row.seconds == 3 * 900
    assert row.money == pytest.approx(3.0)
    assert (row.chat_score, row.chat_score_stderr) == (0.4, 0.03)


def test_an_interrupted_training_costs_its_steps_and_not_only_its_last_part(
    tmp_path: Path,
) -> None:
    whole = {"total_training_time": 500.0}
    resumed = Point({"depth": 1}, 2.0, seconds=10, metrics=whole, provenance={"resumed": True})
    (row,) = rows_of(tmp_path, resumed)
    # 500 of pretraining, and 10 of its evaluation, which has no steps to go by.
    assert row.seconds == 510


def test_the_time_of_a_shared_beginning_is_not_a_points_own(tmp_path: Path) -> None:
    begun = {"resumed": True, "started_from": "pretrain/0123abcd", "started_from_step": 24}
    whole = {"total_training_time": 500.0}
    (row,) = rows_of(
        tmp_path, Point({"depth": 1}, 2.0, seconds=10, metrics=whole, provenance=begun)
    )
    assert row.first_step == 24
    assert row.seconds == pytest.approx(500 * 6 / 30 + 10)


def test_a_point_without_its_model_is_named(tmp_path: Path) -> None:
    made = publish_points(tmp_path, THREE_DEPTHS)
    del made.manifests["001-pretrain"]
    with pytest.raises(ConfigError, match="001-pretrain for its point depth=2"):
        read_rows(made.manifests, made.folders, made.recipe)


def test_a_point_that_was_not_evaluated_has_no_bpb(tmp_path: Path) -> None:
    made = publish_points(tmp_path, THREE_DEPTHS[:1])
    del made.manifests["000-base_eval"]
    (row,) = read_rows(made.manifests, made.folders, made.recipe)
    assert (row.bpb, row.score) == (None, None)


def test_a_model_that_came_to_nothing_has_no_result(tmp_path: Path) -> None:
    made = publish_points(tmp_path, THREE_DEPTHS[:1])
    scores = made.folders["000-base_eval"] / "scores.json"
    scores.write_text('{"val/bpb": NaN, "demo_score": NaN}')
    (row,) = read_rows(made.manifests, made.folders, made.recipe)
    assert (row.bpb, row.score_name, row.score) == (None, "", None)


def test_a_label_twice_and_no_points_are_refused() -> None:
    point = SweepPoint(label="depth=1", values={"depth": 1})
    with pytest.raises(ConfigError, match="depth=1 twice"):
        SweepRecipe(kind="sweep", points=(point,), failed=("depth=1",))
    with pytest.raises(ValidationError, match="at least 1 item"):
        SweepRecipe(kind="sweep", points=())


def test_values_keep_their_types_in_a_recipe_and_back() -> None:
    values = {"pretrain.fp8": True, "depth": 1, "pretrain.optimizer.lr_scale": 1.0, "w": "SSSL"}
    point = SweepPoint(label="x", values=values)
    back = SweepPoint.model_validate_json(point.model_dump_json())
    assert [type(value) for value in back.values.values()] == [bool, int, float, str]
