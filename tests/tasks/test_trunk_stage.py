"""Pretraining stages that look for shared beginnings, with a real server and a real store."""

import json
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Manifest, Request
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import METRICS_FILE, StageOutput
from nanochat_core.errors import ArtifactNotFoundError, DamagedFileError, StoreError
from nanochat_core.optim.recipe import ScheduleRecipe
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.trunk import STATE_FILE, trunk_recipe
from tasks.beginnings import find_trunk
from tasks.listening import Listener
from tasks.pretrain import pretrain
from tasks.stage import Run, Stage, StageCall, StageWork, stage
from tests.flows.many_tools import Reads
from tests.jobs.job_tools import PRETRAIN, make_line

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

FREE = ScheduleRecipe(warmup_steps=2, warmdown_fraction=0.2, cosine_weight_decay=False)
INPUTS = ("tokens", "tokenizer")


def horizon(steps: int, **changes: Any) -> PretrainRecipe:
    values = {**PRETRAIN.model_dump(), "schedule": FREE, "num_iterations": steps, **changes}
    return PretrainRecipe.model_validate(values)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_line(tmp_path_factory.mktemp("line"))


class Published:
    """Tokens and a tokenizer in a store, and runs that are made from them."""

    def __init__(self, line: dict[str, str], url: str, cache: Path) -> None:
        self.store = ArtifactStore(url, cache_folder=cache)
        self.refs = {name: self.publish(name, Path(line[name])) for name in INPUTS}
        self.found: list[int] = []
        self.look = stage("pretrain", code_version=1)(self._look)

    def publish(self, station: str, folder: Path, note: str = "") -> ArtifactRef:
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        request = Request(station=station, code_version=1, recipe={"note": note})
        output = StageOutput(files={name: "result" for name in files})
        return self.store.publish(request, folder, output)

    def _look(self, work: StageWork) -> StageOutput:
        """A station that trains nothing: it writes down how many steps it could have shared."""
        recipe = PretrainRecipe.model_validate(work.recipe.model_dump())
        trunk = find_trunk(work, recipe, code_version=1)
        assert trunk is None or (trunk.folder / STATE_FILE).exists()
        self.found.append(0 if trunk is None else trunk.steps)
        (work.output / STATE_FILE).write_text("{}")
        (work.output / "weights").write_text(recipe.model_dump_json())
        return StageOutput(files={STATE_FILE: "record", "weights": "result"})

    def make(
        self, station: Stage, recipe: PretrainRecipe, *, force: bool = False, **execution: Any
    ) -> Manifest:
        settings = {"device_batch_size": 2, "log_every": 1, "eval_every": -1, **execution}
        placed = Execution(device="cpu", compile=False, **settings)
        run = Run(self.store, Listener())

        @flow
        def alone() -> ArtifactRef:
            return station(StageCall(run, recipe, placed, force=force), self.refs)

        return self.store.manifest(alone())

    def steps_found(self, recipe: PretrainRecipe, **how: Any) -> int:
        """Of a run that is made now, how many steps it could have shared."""
        self.make(self.look, recipe, **how)
        return self.found[-1]


@pytest.fixture
def published(line: dict[str, str], tmp_path: Path) -> Published:
    return Published(line, str(tmp_path / "store"), tmp_path / "cache")


@pytest.fixture
def elsewhere(line: dict[str, str], tmp_path: Path) -> Published:
    return Published(line, f"memory://{uuid4().hex}", tmp_path / "cache")


def test_a_stage_goes_on_from_the_trunk_in_the_store_to_the_same_digest(
    published: Published,
) -> None:
    trunk = published.make(pretrain, trunk_recipe(horizon(10), 8))
    branch = published.make(pretrain, horizon(10))
    assert branch.provenance["started_from_step"] == 8
    assert published.store.resolve(branch.provenance["started_from"]) == trunk.ref
    assert set(branch.inputs) == set(INPUTS)
    lines = (published.store.materialize(branch.ref) / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 11))
    # A forced run takes nothing that was made before.
    alone = published.make(pretrain, horizon(10), force=True)
    assert "started_from_step" not in alone.provenance
    assert "started_from" not in alone.provenance
    assert alone.digest == branch.digest
    assert alone.number == branch.number + 1


def test_the_longest_beginning_is_taken(published: Published) -> None:
    base = horizon(20)
    for steps in (8, 12, 17):
        published.make(published.look, trunk_recipe(base, steps))
    assert published.found == [0, 8, 12], "a trunk goes on from a shorter one"
    assert published.steps_found(horizon(20)) == 12, "17 steps reach into the warm-down"
    assert published.steps_found(horizon(24)) == 17
    assert published.steps_found(horizon(11)) == 8
    assert published.steps_found(horizon(9)) == 0


def test_runs_that_differ_before_the_branch_are_no_beginning(
    published: Published, line: dict[str, str], tmp_path: Path
) -> None:
    published.make(published.look, trunk_recipe(horizon(10), 8))
    cosine = FREE.model_copy(update={"cosine_weight_decay": True})
    assert published.steps_found(horizon(10, seed=1)) == 0
    assert published.steps_found(horizon(10, schedule=cosine)) == 0
    assert published.steps_found(horizon(10), share_beginnings=False) == 0
    own = published.refs["tokens"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokens").write_text("other")
    published.refs["tokens"] = published.publish("tokens", other, note="other")
    assert published.steps_found(horizon(11)) == 0
    published.refs["tokens"] = own
    assert published.steps_found(horizon(11)) == 8


def test_of_a_damaged_trunk_the_next_shorter_one_takes_the_place(published: Published) -> None:
    base = horizon(20)
    for steps in (8, 12):
        longest = published.make(published.look, trunk_recipe(base, steps))
    path = published.store.materialize(longest.ref) / STATE_FILE
    path.chmod(0o644)
    path.write_text("damaged")
    assert published.steps_found(horizon(20)) == 8


def test_an_artifact_without_a_training_state_is_no_beginning(
    published: Published,
) -> None:
    def old(work: StageWork) -> StageOutput:
        (work.output / "weights").write_text("as older versions left them")
        return StageOutput(files={"weights": "result"})

    published.make(stage("pretrain", code_version=1)(old), trunk_recipe(horizon(10), 8))
    assert published.steps_found(horizon(10)) == 0


def test_the_recipe_of_another_checkout_is_passed_over(
    published: Published, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / STATE_FILE).write_text("{}")
    recipe = trunk_recipe(horizon(10), 8).model_dump(mode="json")
    request = Request(
        station="pretrain",
        code_version=1,
        recipe={**recipe, "a_field_of_tomorrow": 1},
        inputs={name: ref.digest for name, ref in published.refs.items()},
    )
    output = StageOutput(files={STATE_FILE: "record"})
    published.store.publish(request, other, output, input_refs=published.refs)
    assert published.steps_found(horizon(10)) == 0
    published.make(published.look, trunk_recipe(horizon(11), 7))
    assert published.steps_found(horizon(11)) == 7


def test_a_trunk_that_cannot_be_fetched_costs_a_warning_and_no_run(
    elsewhere: Published, tmp_path: Path
) -> None:
    trunk = elsewhere.make(elsewhere.look, trunk_recipe(horizon(10), 8))
    # No folder can be made where a file is.
    place = elsewhere.store.materialize(trunk.ref)
    station = next(path for path in place.parents if path.name == "pretrain")
    shutil.rmtree(station)
    station.write_text("a file")
    with pytest.raises((StoreError, OSError)) as error:
        elsewhere.store.materialize(trunk.ref)
    assert not isinstance(error.value, (ArtifactNotFoundError, DamagedFileError))
    assert elsewhere.steps_found(horizon(10)) == 0


def test_each_manifest_is_read_once(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)

    def manifests_read(steps: int) -> int:
        before = reads.manifests
        published.steps_found(horizon(steps))
        return reads.manifests - before

    first = manifests_read(20)
    assert manifests_read(21) == first + 1
    assert manifests_read(22) == first + 2


def test_a_store_elsewhere_has_beginnings_too(elsewhere: Published) -> None:
    elsewhere.make(elsewhere.look, trunk_recipe(horizon(10), 8))
    assert elsewhere.steps_found(horizon(10)) == 8
