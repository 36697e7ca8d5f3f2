"""Stages that evaluate, with a real server, a real store and real jobs: nothing is asked twice."""

import csv
from pathlib import Path

import pytest
from prefect import flow

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import SCORE_STATION, ArtifactRef, Manifest, Request
from nanochat_core.config.base import Recipe
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import StageOutput
from nanochat_core.evals.recipes import BaseEvalRecipe, ChatEvalRecipe
from tasks.base_eval import base_eval
from tasks.chat_eval_sft import chat_eval_sft
from tasks.listening import Listener
from tasks.stage import Run, Stage, StageCall
from tests.evals.eval_line import make_line

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

BASE_EVAL = BaseEvalRecipe(
    validation_tokens=512, max_per_task=6, sample_tokens=4, compute_dtype="float32"
)
CHAT_EVAL = ChatEvalRecipe(benchmarks=("sums",), sums=2, max_new_tokens=4, compute_dtype="float32")


class Published:
    """The line in miniature as artifacts of a store."""

    def __init__(self, root: Path) -> None:
        self.store = ArtifactStore(str(root / "store"))
        folders = make_line(root / "line")
        self.refs = {name: self._publish(name, Path(folder)) for name, folder in folders.items()}

    def _publish(self, station: str, folder: Path) -> ArtifactRef:
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        request = Request(station=station, code_version=1, recipe={})
        output = StageOutput(files={name: "result" for name in files})
        return self.store.publish(request, folder, output)

    def make(self, stage: Stage, recipe: Recipe, *inputs: str, force: bool = False) -> Manifest:
        run = Run(self.store, Listener())

        @flow
        def alone() -> ArtifactRef:
            execution = Execution(device="cpu", device_batch_size=4)
            call = StageCall(run, recipe, execution, force=force)
            return stage(call, {name: self.refs[name] for name in inputs})

        return self.store.manifest(alone())


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


def known(manifest: Manifest) -> list[str]:
    return list(manifest.provenance["known_scores"])


def test_a_stage_asks_no_task_that_an_earlier_run_has_asked(published: Published) -> None:
    inputs = ("pretrain", "tokenizer", "tokens", "shards")
    first = published.make(base_eval, BASE_EVAL, *inputs)
    other = BASE_EVAL.model_copy(update={"validation_tokens": 256})
    again = published.make(base_eval, other, *inputs)
    assert known(first) == []
    tables = [published.store.materialize(made.ref) / "core.csv" for made in (first, again)]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    with tables[0].open(newline="") as file:
        labels = [row[0] for row in csv.reader(file) if row[0].startswith("heldout_")]
    assert known(again) == labels
    assert "bundle/core.yaml" in {file.path for file in again.files}
    score = published.store.manifest(published.store.list(SCORE_STATION)[0])
    assert score.input_refs["pretrain"] == published.refs["pretrain"]


def test_a_stage_of_which_everything_is_known_starts_no_job(published: Published) -> None:
    inputs = ("sft", "tokenizer")
    first = published.make(chat_eval_sft, CHAT_EVAL, *inputs)
    # Sums do not depend on how many questions of identity there would be.
    other = CHAT_EVAL.model_copy(update={"identity_questions": 7})
    again = published.make(chat_eval_sft, other, *inputs)
    assert "torch" in first.provenance
    assert "torch" not in again.provenance
    assert (known(first), known(again)) == ([], ["sums"])
    assert again.digest == first.digest
    assert again.metrics == first.metrics
    forced = published.make(chat_eval_sft, other, *inputs, force=True)
    assert known(forced) == []
