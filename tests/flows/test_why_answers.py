"""`why` says what else there is: damage, nothing yet, force, an upstream, unfinished work."""

import re
import shutil
from pathlib import Path

import pytest
from made_line import make_line, publish
from why_tools import Made, command, damage, date, make_whole, refs_of, request_of, texts

from flows.dry_line import dry_run
from flows.explaining import Explainer, Explanation
from flows.why_command import COMMANDS
from flows.why_page import why_lines
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Request
from nanochat_core.errors import ArtifactNotFoundError, ConfigError, UnknownNameError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Nobody may change its store."""
    return make_whole(tmp_path_factory.mktemp("why"))


def test_a_forced_station_is_made_again_because_of_that(made: Made) -> None:
    found = made.explain("sft", force=("sft",))
    assert [cause.kind for cause in found.first_causes] == ["forced"]
    assert texts(made.explain("rl", force=("sft",))) == texts(found)
    rl = made.planned(start_from="sft")["rl"]
    assert (rl.state, rl.request) == ("miss", None)
    (cause,) = made.explain("rl", start_from="sft").first_causes
    assert (cause.station, cause.kind) == ("rl", "forced")


@pytest.mark.parametrize("pattern", ["*/*/result.txt", "*/manifest-*.json"])
def test_a_damaged_artifact_is_named_with_its_file(
    made: Made, tmp_path: Path, pattern: str
) -> None:
    own = made.copy(tmp_path)
    damage(own, "sft", pattern)
    (cause,) = own.explain("sft").first_causes
    assert cause.kind == "damaged"
    assert pattern.rpartition("/")[2][:6] in cause.text
    later = own.explain("rl")
    assert later.first_causes == (cause,)
    assert later.state == "unknown"


def test_an_artifact_of_which_there_is_none_is_said_to_be_none(made: Made, tmp_path: Path) -> None:
    own = made.copy(tmp_path)
    shutil.rmtree(own.folder / "store" / "sft")
    assert texts(own.explain("sft")) == [f"there is no artifact of sft in {own.store.url} yet"]


def test_in_an_empty_store_everything_starts_with_the_shards(made: Made, tmp_path: Path) -> None:
    own = made.copy(tmp_path)
    shutil.rmtree(own.folder / "store")
    assert texts(own.explain("shards")) == [
        f"there is no artifact of shards in {own.store.url} yet"
    ]
    found = own.explain("report")
    assert found.state == "miss"
    assert [step.station for step in found.waits_for] == ["shards", "benchmarks"]


def test_an_input_that_is_gone_ends_the_search(made: Made, tmp_path: Path) -> None:
    own = made.copy(tmp_path)
    more = {"overrides": {"tokenizer.vocab_size": 600}}
    make_line(own.store, own.resolved(stop_after="tokenizer", **more))
    old = request_of(own.planned()["tokenizer"]).fingerprint
    shutil.rmtree(own.folder / "store" / "tokenizer" / old)
    (cause,) = own.explain("tokens", **more).first_causes
    assert cause.kind == "gone"
    assert cause.text.startswith("the old tokenizer is not in the store any more")


def test_an_input_that_came_out_otherwise_is_named_with_both_results(
    made: Made, tmp_path: Path
) -> None:
    own = made.copy(tmp_path)
    step = own.planned()["tokenizer"]
    again = publish(own.store, request_of(step), refs_of(step), text="otherwise", force=True)
    (cause,) = own.explain("tokens").first_causes
    assert cause.kind == "result"
    assert cause.text.startswith(f"{again.short} was made again with another result: ")
    assert Explainer(own.store).artifact(again).first_causes == (cause,)


def test_a_store_upstream_makes_hits_and_is_not_copied_for_a_look(
    made: Made, tmp_path: Path
) -> None:
    below = ArtifactStore(str(tmp_path / "below"), upstream=made.store)
    found = Explainer(below).station(dry_run(made.resolved(), below)["report"])
    assert found.state == "hit"
    assert found.summary.endswith("in the store upstream, and is copied from there")
    assert below.list() == []
    other = dry_run(made.resolved(overrides={"sft.epochs": 2}), below)
    assert texts(Explainer(below).station(other["sft"])) == ['sft.epochs: "auto" -> 2.0']


def test_unfinished_work_is_told_by_its_last_whole_checkpoint(made: Made, tmp_path: Path) -> None:
    own = made.copy(tmp_path)
    deeper = {"overrides": {"pretrain.depth": 3}}
    request = request_of(own.planned(**deeper)["pretrain"])
    assert own.planned(**deeper)["pretrain"].in_progress_step is None
    checkpoints = own.store.generation(request) / "work" / "checkpoints"
    checkpoints.mkdir(parents=True)
    assert own.planned(**deeper)["pretrain"].in_progress_step == 0
    for step in (10, 20):
        (checkpoints / f"step-{step:08d}-0123abcd").mkdir()
    (checkpoints / "step-00000010-0123abcd" / "manifest.json").write_text("{}")
    assert own.planned(**deeper)["pretrain"].in_progress_step == 10
    assert "continues after step 10" in "\n".join(why_lines(own.explain("sft", **deeper)))


def test_what_led_to_a_published_artifact_is_no_unfinished_work(made: Made, tmp_path: Path) -> None:
    own = made.copy(tmp_path)
    forced = {"force": ("pretrain",)}
    request = request_of(own.planned(**forced)["pretrain"])
    work = own.folder / "store" / "inprogress" / "pretrain" / request.fingerprint
    (work / "000001-000").mkdir(parents=True)
    assert own.planned(**forced)["pretrain"].in_progress_step is None
    (work / "000002-000").mkdir()
    assert own.planned(**forced)["pretrain"].in_progress_step == 0


def test_an_artifact_is_explained_by_what_sets_it_apart_from_the_one_before_it(
    made: Made, tmp_path: Path
) -> None:
    own = made.copy(tmp_path)
    make_line(own.store, own.resolved(overrides={"sft.epochs": 2.0}))
    model = own.planned(overrides={"sft.epochs": 2.0})["rl"].ref
    assert model is not None
    own.store.set_alias("latest", date(own.store, model, 1))
    code, output = own.command("why", "latest")
    assert code == 0
    assert output.startswith("rl: published\n")
    assert "made before it" in output
    assert '  because sft.epochs: "auto" -> 2.0' in output
    (old,) = (ref for ref in own.store.list("rl") if ref.fingerprint != model.fingerprint)
    assert "the first artifact of rl" in own.command("why", old.short)[1]


def test_an_artifact_that_no_run_of_the_line_makes_is_explained_too(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    requests = [
        Request(station="kernels", code_version=1, recipe={"torch": version})
        for version in ("2.12", "2.13")
    ]
    refs = [date(store, publish(store, request, {}), i) for i, request in enumerate(requests)]
    found = Explainer(store).artifact(refs[1])
    assert texts(found) == ['kernels.torch: "2.12" -> "2.13"']


def test_the_command_answers_in_words_or_as_json(made: Made) -> None:
    code, output = made.command("why", "sft", "tiny", "--set", "sft.epochs=2")
    assert code == 0
    assert output.startswith("sft: miss\n  compared with sft/")
    assert '\n    sft.epochs: "auto" -> 2.0\n' in output
    code, output = made.command("why", "sft", "tiny", "--set", "sft.epochs=2", "--json")
    assert code == 0
    found = Explanation.model_validate_json(output)
    assert texts(found) == ['sft.epochs: "auto" -> 2.0']
    code, output = made.command("why", "sft", "tiny", "--set", "rl.task=gsm8k")
    assert code == 0
    assert output.startswith("sft: hit\n")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("stf",), UnknownNameError, "did you mean sft?"),
        (("stf",), UnknownNameError, "there are: shards, tokenizer"),
        (("demo",), ArtifactNotFoundError, "'demo' names nothing in the store"),
        (("sft/0123abcd",), ArtifactNotFoundError, "names nothing in the store"),
        (("rl", "tiny", "--stop-after", "sft"), ConfigError, "rl is not in this run"),
        (("rl", "tyni"), UnknownNameError, "did you mean tiny"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused_with_what_there_is(
    made: Made, arguments: tuple[str, ...], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        made.command("why", *arguments)


def test_help_fits_a_terminal() -> None:
    for name, _, examples in COMMANDS:
        code, output = command(name, "--help")
        assert code == 0
        assert max(map(len, (*output.splitlines(), *(f"  {line}" for line in examples)))) <= 80


def test_of_very_many_changes_the_first_are_shown(made: Made, tmp_path: Path) -> None:
    own = made.copy(tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02d}.txt").write_text(f"A river runs for {i} days.\n")
    planned = dry_run(own.resolved(source=(str(folder),)), own.store)
    lines = why_lines(Explainer(own.store).station(planned["shards"]))
    assert len(lines) < 30
    assert lines[-1].strip().startswith("and 11 more")


def test_of_a_store_elsewhere_the_work_on_this_host_counts_too(made: Made, tmp_path: Path) -> None:
    store = ArtifactStore(f"memory://{tmp_path.name}", cache_folder=tmp_path / "cache")
    resolved = made.resolved()
    make_line(store, resolved)
    assert {step.state for step in dry_run(resolved, store).values()} == {"cached", "miss"}
    deeper = made.resolved(overrides={"pretrain.depth": 3})
    request = request_of(dry_run(deeper, store)["pretrain"])
    there = "/".join(
        ("inprogress", "pretrain", request.fingerprint, "000001-000", "work", "checkpoints")
    )
    store.files.write(f"{there}/step-00000010-0123abcd/manifest.json", b"{}")
    assert dry_run(deeper, store)["pretrain"].in_progress_step == 10
    here = store.generation(request) / "work" / "checkpoints" / "step-00000020-0123abcd"
    here.mkdir(parents=True)
    (here / "manifest.json").write_text("{}")
    assert dry_run(deeper, store)["pretrain"].in_progress_step == 20


@pytest.mark.s3
def test_a_store_on_s3_is_explained_alike(made: Made, s3_url: str, tmp_path: Path) -> None:
    store = ArtifactStore(s3_url, cache_folder=tmp_path / "cache")
    make_line(store, made.resolved())
    other = dry_run(made.resolved(overrides={"sft.epochs": 2}), store)
    assert texts(Explainer(store).station(other["sft"])) == ['sft.epochs: "auto" -> 2.0']
    assert texts(Explainer(store).station(other["rl"])) == ['sft.epochs: "auto" -> 2.0']
