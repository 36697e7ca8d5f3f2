"""`why` names what makes a miss: one field, the code version, or an input and its own cause."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_line import RUN, make_line, publish
from why_tools import Made, date, make_whole, raised, refs_of, request_of, texts

from flows.explaining import Explainer
from flows.looking import flat
from flows.presets import MAKING_STATIONS
from flows.why_page import why_lines

FIELDS: tuple[tuple[str, str, Any, Any], ...] = (
    ("shards", "num_shards", 2, 3),
    ("shards", "source.max_document_characters", 2000, 1000),
    ("tokenizer", "vocab_size", 512, 600),
    ("tokenizer", "max_document_characters", 10_000, 5_000),
    ("pretrain", "depth", 2, 3),
    ("pretrain", "optimizer.matrices.weight_decay", 0.0, 0.5),
    ("pretrain", "data.max_epochs", 8.0, 9.0),
    ("base_eval", "max_per_task", 4, 5),
    ("base_eval", "seed", 42, 7),
    ("sft", "epochs", "auto", 2.0),
    ("sft", "mixture.parts.1.conversations", 20, 21),
    ("chat_eval_sft", "sums", 4, 5),
    ("chat_eval_sft", "max_problems", 0, 2),
    ("rl", "lr_scale", 0.05, 0.5),
    ("rl", "schedule.final_lr_fraction", 0.0, 0.1),
    ("chat_eval_rl", "identity_questions", 6, 7),
    ("chat_eval_rl", "max_new_tokens", 16, 17),
    ("report", "num_samples", 4, 5),
)
"""Station and field, its value in the store, and the one that is asked for. `tokens` has none."""
INPUTS = {
    "tokenizer": ("shards",),
    "tokens": ("shards", "tokenizer"),
    "pretrain": ("tokens", "tokenizer"),
    "base_eval": ("pretrain", "tokenizer", "tokens", "shards"),
    "sft": ("pretrain", "tokenizer", "shards"),
    "chat_eval_sft": ("sft", "tokenizer", "benchmarks"),
    "rl": ("sft", "tokenizer", "benchmarks"),
    "chat_eval_rl": ("rl", "tokenizer", "benchmarks"),
    "report": (
        *("shards", "tokenizer", "tokens", "pretrain", "base_eval"),
        *("sft", "chat_eval_sft", "rl", "chat_eval_rl"),
    ),
}
ONE_INPUT = [(station, name) for station, names in INPUTS.items() for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Nobody may change its store."""
    return make_whole(tmp_path_factory.mktemp("why"))


def test_every_station_of_the_same_run_is_a_hit_with_what_made_it(made: Made) -> None:
    for station in MAKING_STATIONS:
        found = made.explain(station)
        assert (found.state, found.first_causes) == ("hit", ())
        assert found.origin is not None
        assert found.origin.run == RUN
    assert made.explain("release").state == "miss"
    page = "\n".join(why_lines(made.explain("rl")))
    assert f"by run {RUN} (preset tiny)" in page
    assert "samples_per_question = 8" in page
    assert "normalise_group" not in page  # a default


@pytest.mark.parametrize(("station", "field", "old", "new"), FIELDS)
def test_the_one_changed_field_is_named(
    made: Made, station: str, field: str, old: Any, new: Any
) -> None:
    (cause,) = made.explain(station, overrides={f"{station}.{field}": new}).first_causes
    assert (cause.station, cause.kind) == (station, "recipe")
    assert cause.change is not None
    assert (cause.change.name, cause.change.old, cause.change.new) == (field, old, new)
    assert cause.text == f"{station}.{field}: {json.dumps(old)} -> {json.dumps(new)}"


def other_value(value: Any) -> Any:
    """Something else of the same form."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else "something"


def put(recipe: Any, name: str, value: Any) -> Any:
    """A copy of a recipe with the field at a dotted name changed."""
    first, _, rest = name.partition(".")
    place = int(first) if isinstance(recipe, list) else first
    whole = recipe.copy()
    whole[place] = put(recipe[place], rest, value) if rest else value
    return whole


@pytest.mark.parametrize("station", MAKING_STATIONS)
def test_every_field_of_every_recipe_is_named_when_it_alone_differs(
    made: Made, station: str
) -> None:
    planned = made.planned()[station]
    assert planned.request is not None
    # Files are told by their names; test_differing has them.
    fields = [(name, value) for name, value in flat(planned.recipe) if "files." not in name]
    explainer = Explainer(made.store)
    for name, value in fields:
        recipe = put(planned.recipe, name, other_value(value))
        request = planned.request.model_copy(update={"recipe": recipe})
        asked = replace(planned, state="miss", ref=None, recipe=recipe, request=request)
        (cause,) = explainer.station(asked).first_causes
        assert cause.change is not None
        assert (cause.station, cause.change.name) == (station, name)


def test_another_text_or_benchmark_is_named_by_its_file(made: Made, tmp_path: Path) -> None:
    own = made.copy(tmp_path)
    own.text.write_text(own.text.read_text().replace("stone", "cloud"))
    (own.benchmarks / "gsm8k-test.jsonl").write_text('{"question": "1 + 2?"}\n')
    (text,), (problems,) = (own.explain(name).first_causes for name in ("shards", "benchmarks"))
    assert text.text.startswith("shards.source.files.text.txt.sha256: ")
    assert problems.text.startswith("benchmarks.files.gsm8k-test.jsonl.sha256: ")
    (cause,) = own.explain("pretrain").first_causes
    assert cause == text


@pytest.mark.parametrize("station", MAKING_STATIONS)
def test_another_code_version_is_named(made: Made, tmp_path: Path, station: str) -> None:
    planned = made.planned()[station]
    older = raised(request_of(planned))
    own = made.copy(tmp_path)
    shutil.rmtree(own.folder / "store" / station)
    publish(own.store, older, refs_of(planned))
    planned = own.planned()
    (cause,) = Explainer(own.store).station(planned[station]).first_causes
    versions = (older.code_version, older.code_version - 1)
    assert cause.text == f"code version of {station}: {versions[0]} -> {versions[1]}"
    # What comes after it waits for it, and for the same reason.
    later = [step for step in planned.values() if step.state == "unknown"]
    for step in later:
        if step.station != "release":
            assert texts(Explainer(own.store).station(step)) == [cause.text]
    assert bool(later) == (station != "report")


@pytest.mark.parametrize(("station", "name"), ONE_INPUT)
def test_another_input_is_named_with_what_made_it_another(
    made: Made, tmp_path: Path, station: str, name: str
) -> None:
    own = made.copy(tmp_path)
    planned = own.planned()
    source = planned[name]
    older = publish(own.store, raised(request_of(source)), refs_of(source))
    shutil.rmtree(own.folder / "store" / station)
    asked, refs = request_of(planned[station]), refs_of(planned[station])
    inputs = {**asked.inputs, name: older.digest}
    publish(own.store, asked.model_copy(update={"inputs": inputs}), {**refs, name: older})
    found = own.explain(station)
    assert [change.name for change in found.inputs] == [name]
    assert found.own == ()
    (cause,) = found.first_causes
    assert (cause.station, cause.kind) == (name, "code version")
    assert f"  because {cause.text}" in "\n".join(why_lines(found))


def test_every_input_of_every_station_was_tried(made: Made) -> None:
    planned = made.planned()
    assert {name: set(step.inputs) for name, step in planned.items() if step.inputs} == {
        **{name: set(inputs) for name, inputs in INPUTS.items()},
        "release": {"rl"},
    }


def test_a_change_far_back_is_the_one_first_cause_of_all_that_follows(
    made: Made, tmp_path: Path
) -> None:
    own = made.copy(tmp_path)
    more = {"overrides": {"tokenizer.vocab_size": 600}}
    make_line(own.store, own.resolved(stop_after="pretrain", **more))
    expected = ["tokenizer.vocab_size: 512 -> 600"]
    sft = own.explain("sft", **more)
    assert (sft.state, texts(sft)) == ("miss", expected)
    assert [change.name for change in sft.inputs] == ["pretrain", "tokenizer"]
    rl = own.explain("rl", **more)
    assert (rl.state, texts(rl)) == ("miss", expected)
    assert [change.name for change in rl.inputs] == ["tokenizer"]
    assert [waited.station for waited in rl.waits_for] == ["sft"]


def test_what_waits_for_a_miss_says_so_and_names_its_own_changes(made: Made) -> None:
    deeper = {"pretrain.depth": 3}
    sft = made.explain("sft", overrides=deeper)
    assert (sft.state, sft.summary) == ("unknown", "because pretrain is made first")
    assert texts(sft) == ["pretrain.depth: 2 -> 3"]
    assert {step.station: step.state for step in made.explain("rl", overrides=deeper).upstream} == {
        **dict.fromkeys(("shards", "tokenizer", "tokens", "benchmarks"), "hit"),
        "pretrain": "miss",
        "sft": "unknown",
    }
    both = made.explain("sft", overrides={**deeper, "sft.epochs": 2})
    assert both.state == "miss"
    assert texts(both) == ["pretrain.depth: 2 -> 3", 'sft.epochs: "auto" -> 2.0']
    assert made.explain("release", overrides=deeper).state == "unknown"


def test_the_nearest_artifact_is_the_one_with_the_fewest_differences(
    made: Made, tmp_path: Path
) -> None:
    own = made.copy(tmp_path)
    near = {"pretrain.depth": 5, "pretrain.data.max_epochs": 9.0}
    make_line(own.store, own.resolved(stop_after="pretrain", overrides=near))
    far = own.planned()["pretrain"].ref
    assert far is not None
    date(own.store, far, 59)  # newer than the near one
    found = own.explain("pretrain", overrides={**near, "pretrain.seed": 7})
    assert texts(found) == ["pretrain.seed: 42 -> 7"]


def test_an_input_counts_as_a_difference_as_a_field_does(made: Made, tmp_path: Path) -> None:
    own = made.copy(tmp_path)
    step = own.planned(overrides={"sft.epochs": 2})["sft"]
    refs = refs_of(step)
    inputs = {name: refs["tokenizer"].digest for name in refs}
    other = publish(own.store, request_of(step).model_copy(update={"inputs": inputs}), refs)
    date(own.store, other, 59)
    found = own.explain("sft", overrides={"sft.epochs": 2})
    assert texts(found) == ['sft.epochs: "auto" -> 2.0']


def test_of_equally_near_artifacts_the_newest_counts(made: Made, tmp_path: Path) -> None:
    own = made.copy(tmp_path)
    asked = request_of(made.planned()["tokenizer"])
    for seconds, size in ((30, 700), (50, 800), (10, 900)):
        request = asked.model_copy(update={"recipe": {**asked.recipe, "vocab_size": size}})
        date(own.store, publish(own.store, request, refs_of(own.planned()["tokenizer"])), seconds)
    (cause,) = own.explain("tokenizer", overrides={"tokenizer.vocab_size": 600}).first_causes
    assert cause.text == "tokenizer.vocab_size: 800 -> 600"
