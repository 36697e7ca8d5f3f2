"""Scores that are kept: real jobs of small models, in this process, against a real store."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import SCORE_STATION
from nanochat_core.config.job import JobSpec, StageOutput
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import JobStoppedError
from nanochat_core.evals.kept_scores import KeptScores
from nanochat_core.inference.loading import save_model
from nanochat_core.jobs import base_eval, chat_eval
from nanochat_core.jobs.common import StopRequest
from tasks import score_publishing
from tasks.kept_scores import evaluate
from tests.evals.eval_line import FACTS, make_line, make_spec
from tests.evals.eval_tools import choice_rows, make_model, write_bundle
from tests.s3_server import S3Server

HELDOUT = ["heldout_rest", "heldout_start", "heldout_word"]
TABLES = ("scores.json", "examples.csv", "core.csv", "samples.json", "metrics.jsonl")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_line(tmp_path_factory.mktemp("line"))


class Evaluations:
    """Evaluates again and again, each time in folders of its own, with one store."""

    def __init__(self, root: Path, line: dict[str, str], url: str = "") -> None:
        self.root, self.line = root, line
        self.store = ArtifactStore(url or str(root / "store"), cache_folder=root / "cache")
        self.told: list[str] = []
        self.num_jobs = 0
        self.output = root
        self.stop: Callable[[JobSpec], bool] = lambda _: False

    def __call__(
        self,
        station: str,
        inputs: dict[str, str] | None = None,
        *,
        folder: str = "",
        fresh: bool = False,
        **recipe: Any,
    ) -> StageOutput:
        place = self.root / (folder or f"run-{len(list(self.root.glob('run-*')))}")
        spec = make_spec(inputs or self.line, place, station)
        spec = spec.model_copy(update={"recipe": {**spec.recipe, **recipe}})
        self.output = place / "output"
        return evaluate(spec, self.store, {}, self.run, fresh=fresh, tell=self.told.append)

    def run(self, spec: JobSpec) -> StageOutput:
        self.num_jobs += 1
        job = base_eval if spec.station == "base_eval" else chat_eval

        class Asking(StopRequest):
            def __call__(_) -> bool:
                return self.stop(spec)

        job.main(spec, Ranks.single(), Asking())
        return StageOutput.load(Path(spec.output_folder))

    def tasks(self, bundle: Path, **recipe: Any) -> StageOutput:
        """In-context tasks alone, as `nanochat eval core` asks them."""
        model = {name: self.line[name] for name in ("pretrain", "tokenizer")}
        inputs = {**model, "eval_bundle": str(bundle)}
        return self("base_eval", inputs, sample_tokens=0, **recipe)

    def files(self, *names: str) -> list[bytes]:
        return [(self.output / name).read_bytes() for name in names]


@pytest.fixture
def evaluations(tmp_path: Path, line: dict[str, str]) -> Evaluations:
    return Evaluations(tmp_path, line)


def known(output: StageOutput) -> list[str]:
    return list(output.provenance["known_scores"])


def make_bundle(folder: Path, *labels: str, rows: int = 8) -> Path:
    folder.mkdir()
    tasks = [
        {
            "label": label,
            "icl_task_type": "multiple_choice",
            "num_fewshot": [number],
            "continuation_delimiter": " ",
            "rows": choice_rows(rows),
        }
        for number, label in enumerate(labels)
    ]
    write_bundle(folder, tasks)
    return folder


def test_other_validation_tokens_ask_no_task_again(evaluations: Evaluations) -> None:
    assert known(evaluations("base_eval")) == []
    before = evaluations.files("examples.csv", "core.csv")
    again = evaluations("base_eval", validation_tokens=256)
    assert known(again) == HELDOUT
    assert evaluations.files("examples.csv", "core.csv") == before
    assert len(evaluations.store.list(SCORE_STATION)) == 3


def test_one_more_task_is_the_only_one_that_is_asked(
    evaluations: Evaluations, tmp_path: Path
) -> None:
    evaluations.tasks(make_bundle(tmp_path / "two", "one", "two"))
    output = evaluations.tasks(make_bundle(tmp_path / "three", "one", "two", "three"))
    assert known(output) == ["one", "two"]
    assert len(evaluations.store.list(SCORE_STATION)) == 3
    assert evaluations.num_jobs == 2


def test_the_tasks_of_core_among_the_benchmarks_take_the_place_of_held_out_ones(
    evaluations: Evaluations, tmp_path: Path
) -> None:
    bundle, folder = make_bundle(tmp_path / "eval_bundle", "one", "two"), tmp_path / "benchmarks"
    folder.mkdir()
    # With a folder on top, as the published zip has.
    shutil.make_archive(str(folder / "eval_bundle"), "zip", tmp_path, bundle.name)
    inputs = {**evaluations.line, "benchmarks": str(folder)}
    evaluations("base_eval", inputs, core_bundle="eval_bundle.zip")
    scores = json.loads(*evaluations.files("scores.json"))
    assert list(scores["tasks"]) == ["one", "two"]
    assert known(evaluations.tasks(bundle)) == ["one", "two"]


def test_without_anything_to_ask_there_is_no_job_and_the_files_are_the_same(
    evaluations: Evaluations, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", "one", "two")
    made = evaluations.tasks(bundle)
    before = evaluations.files(*TABLES)
    again = evaluations.tasks(bundle)
    assert evaluations.num_jobs == 1
    assert evaluations.files(*TABLES) == before
    assert (again.files, again.metrics) == (made.files, made.metrics)
    assert StageOutput.load(evaluations.output) == again
    assert "nothing was asked" in evaluations.told[-1]


def test_a_task_that_is_called_or_lies_otherwise_is_the_same(
    evaluations: Evaluations, tmp_path: Path
) -> None:
    evaluations.tasks(make_bundle(tmp_path / "here", "one"))
    evaluations.tasks(make_bundle(tmp_path / "there", "another"))
    assert evaluations.num_jobs == 1
    scores = json.loads((evaluations.output / "scores.json").read_bytes())
    assert list(scores["tasks"]) == ["another"]


def test_all_examples_are_as_many_as_there_are(evaluations: Evaluations, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", "one", rows=5)
    evaluations.tasks(bundle, max_per_task=0)
    evaluations.tasks(bundle, max_per_task=500)
    assert evaluations.num_jobs == 1
    assert known(evaluations.tasks(bundle, max_per_task=4)) == []


@pytest.mark.parametrize("what", ["weights", "dtype", "rows", "shots"])
def test_what_may_change_an_answer_is_asked_again(
    evaluations: Evaluations, tmp_path: Path, what: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle", "one")
    evaluations.tasks(bundle)
    recipe = {}
    if what == "weights":
        save_model(make_model(seed=1), tmp_path / "model", {})
        evaluations.line = evaluations.line | {"pretrain": str(tmp_path / "model")}
    elif what == "dtype":
        recipe = {"compute_dtype": "bfloat16"}
    elif what == "rows":
        bundle = make_bundle(tmp_path / "other", "one", rows=9)
    else:
        bundle = make_bundle(tmp_path / "other", "zero", "one")
        listing = json.loads((bundle / "core.yaml").read_text())
        listing["icl_tasks"] = listing["icl_tasks"][1:]
        (bundle / "core.yaml").write_text(json.dumps(listing))
    assert known(evaluations.tasks(bundle, **recipe)) == []
    assert evaluations.num_jobs == 2


def test_a_stop_keeps_the_tasks_that_were_finished(evaluations: Evaluations) -> None:
    def is_one_there(spec: JobSpec) -> bool:
        scores = KeptScores.of(spec.inputs)
        return any(scores.path(name).exists() for name in scores.asked)

    evaluations.stop = is_one_there
    with pytest.raises(JobStoppedError):
        evaluations("base_eval")
    assert len(evaluations.store.list(SCORE_STATION)) == 1
    evaluations.stop = lambda _: False
    assert known(evaluations("base_eval")) == HELDOUT[:1]
    assert len(evaluations.store.list(SCORE_STATION)) == 3


@pytest.mark.s3
def test_a_store_that_goes_away_holds_up_neither_the_job_nor_its_stop(
    tmp_path: Path, line: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = S3Server(tmp_path / "server")
    server.start()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        evaluations = Evaluations(tmp_path, line, server.new_bucket())
        looks: list[float] = []

        def is_late(spec: JobSpec) -> bool:
            scores = KeptScores.of(spec.inputs)
            found = [name for name in scores.asked if scores.path(name).exists()]
            if found and not looks:
                server.kill()
            if found:
                looks.append(time.monotonic())
            # Long enough for the thread to have tried, and to wait for the store's answer.
            time.sleep(1.5 if len(looks) == 2 else 0)
            return len(found) == 2

        evaluations.stop = is_late
        with pytest.raises(JobStoppedError):
            evaluations("base_eval")
        assert time.monotonic() - looks[0] < score_publishing.STOP_SECONDS + 10
        assert any("does not answer" in line for line in evaluations.told)
    finally:
        server.remove()


def test_what_could_not_be_published_is_known_and_published_by_the_next_command(
    evaluations: Evaluations,
) -> None:
    in_the_way = evaluations.root / "store" / SCORE_STATION
    in_the_way.parent.mkdir()
    in_the_way.write_text("")
    evaluations("base_eval", folder="same")
    in_the_way.unlink()
    assert known(evaluations("base_eval", folder="same")) == HELDOUT
    assert len(evaluations.store.list(SCORE_STATION)) == 3


def test_fresh_asks_everything_again_and_replaces_what_was_kept(
    evaluations: Evaluations,
) -> None:
    evaluations("base_eval")
    assert known(evaluations("base_eval", fresh=True)) == []
    assert {ref.manifest for ref in evaluations.store.list(SCORE_STATION)} == {2}
    assert known(evaluations("base_eval")) == HELDOUT


def test_a_damaged_score_is_asked_again(evaluations: Evaluations) -> None:
    evaluations("base_eval")
    ref = evaluations.store.list(SCORE_STATION)[0]
    path = evaluations.store.materialize(ref) / "score.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("0", "1"))
    assert len(known(evaluations("base_eval"))) == 2
    assert len(known(evaluations("base_eval"))) == 3


def test_what_a_killed_publisher_has_left_goes_when_the_score_is_found(
    evaluations: Evaluations,
) -> None:
    evaluations("base_eval")
    folder = (
        evaluations.root
        / "store"
        / SCORE_STATION
        / evaluations.store.list(SCORE_STATION)[0].fingerprint
    )
    left = folder / "20260101T000000-0123456789ab"
    left.mkdir()
    (left / "score.json").write_text("half of")
    evaluations("base_eval")
    assert not left.exists()


def test_a_score_that_another_run_publishes_is_left_to_it(evaluations: Evaluations) -> None:
    evaluations("base_eval")
    first, *_ = evaluations.store.list(SCORE_STATION)
    with evaluations.store.lock(SCORE_STATION, first.fingerprint):
        evaluations("base_eval", fresh=True)
    manifests = {ref.fingerprint: ref.manifest for ref in evaluations.store.list(SCORE_STATION)}
    assert manifests.pop(first.fingerprint) == 1
    assert set(manifests.values()) == {2}


def test_a_score_says_what_it_is_about(evaluations: Evaluations) -> None:
    evaluations("base_eval")
    manifests = [evaluations.store.manifest(ref) for ref in evaluations.store.list(SCORE_STATION)]
    assert {manifest.metrics["task"] for manifest in manifests} == set(HELDOUT)
    scores = json.loads((evaluations.output / "scores.json").read_bytes())["tasks"]
    for manifest in manifests:
        assert manifest.metrics["examples"] == 6
        assert manifest.metrics["accuracy"] == scores[manifest.metrics["task"]]["accuracy"]


@pytest.mark.s3
def test_scores_are_shared_through_a_bucket(
    tmp_path: Path, line: dict[str, str], s3_url: str
) -> None:
    check_sharing(tmp_path, line, s3_url)


def test_scores_are_shared_through_a_store_elsewhere(tmp_path: Path, line: dict[str, str]) -> None:
    check_sharing(tmp_path, line, f"memory://{tmp_path.name}")


def check_sharing(tmp_path: Path, line: dict[str, str], url: str) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    Evaluations(tmp_path / "one", line, url)("base_eval")
    assert known(Evaluations(tmp_path / "two", line, url)("base_eval")) == HELDOUT


def test_a_store_that_takes_nothing_costs_a_line_and_not_the_result(
    evaluations: Evaluations,
) -> None:
    (evaluations.root / "store").mkdir()
    (evaluations.root / "store" / SCORE_STATION).write_text("in the way")
    evaluations("base_eval")
    assert (evaluations.output / "scores.json").exists()
    (line,) = evaluations.told
    assert line.startswith("scores are not kept for other runs")


def test_one_more_benchmark_is_the_only_one_that_is_asked(evaluations: Evaluations) -> None:
    assert known(evaluations("chat_eval", benchmarks=["sums"])) == []
    assert known(evaluations("chat_eval", benchmarks=["identity", "sums"])) == ["sums"]
    both = evaluations.files("scores.json", "answers.json")
    evaluations("chat_eval", benchmarks=["identity", "sums"])
    assert evaluations.num_jobs == 2
    assert evaluations.files("scores.json", "answers.json") == both
    answers = json.loads(both[1])
    assert [answer["benchmark"] for answer in answers] == ["identity"] * 3 + ["sums"] * 2


@pytest.mark.parametrize("recipe", [{"max_new_tokens": 5}, {"sums": 3}, {"seed": 1}])
def test_other_problems_or_longer_replies_are_asked_again(
    evaluations: Evaluations, recipe: dict[str, int]
) -> None:
    evaluations("chat_eval", benchmarks=["sums"])
    assert known(evaluations("chat_eval", benchmarks=["sums"], **recipe)) == []


def test_letters_do_not_depend_on_the_length_of_replies(
    evaluations: Evaluations, tmp_path: Path
) -> None:
    row = {
        "question": "What is blue?",
        "choices": {"text": ["the sky", "a dog"], "label": ["A", "B"]},
        "answerKey": "A",
    }
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "arc-easy-test.jsonl").write_text(json.dumps(row) + "\n")
    inputs = {**evaluations.line, "benchmarks": str(tmp_path / "files")}
    evaluations("chat_eval", inputs, benchmarks=["arc-easy"])
    evaluations("chat_eval", inputs, benchmarks=["arc-easy"], max_new_tokens=9)
    assert evaluations.num_jobs == 1


def test_a_model_that_knows_other_facts_is_another_model(
    evaluations: Evaluations, tmp_path: Path
) -> None:
    evaluations("chat_eval", benchmarks=["identity"])
    facts = FACTS.model_copy(update={"name": "Eve"}).model_dump(mode="json")
    save_model(make_model(), tmp_path / "model", {"facts": facts})
    evaluations.line = {**evaluations.line, "sft": str(tmp_path / "model")}
    output = evaluations("chat_eval", benchmarks=["identity"])
    assert known(output) == []
