"""How a stage on another pool is followed, against a real server and without a worker."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.states import Completed, Crashed, State

from flows import elsewhere
from flows.stage_run import StageAsked, stage_run
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Request
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import StageOutput
from nanochat_core.data.recipes import FilesSource, ShardsRecipe
from nanochat_core.data.sources import resolve_files_source
from nanochat_core.errors import JobLostError, JobStoppedError
from tasks.listening import Listener
from tasks.stage import Run

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

REQUEST = Request(station="shards", code_version=1, recipe={"a": 1}, inputs={})
Answer = Callable[[SyncPrefectClient, UUID, StageAsked], State[Any]]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "POLL_SECONDS", 0.05)


def asking(store: ArtifactStore, **more: Any) -> StageAsked:
    values = {"station": "shards", "recipe": {}, "inputs": {}, "store": store.url, **more}
    return StageAsked(execution=Execution(), **values)


@contextmanager
def answered_by(answers: list[Answer], asked: list[StageAsked]) -> Iterator[str]:
    """A pool whose worker gives these answers, one a run, and keeps what it was asked."""
    pool = f"pool-{uuid4().hex[:8]}"
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(stage_run), pool)
    filter_ = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
    ended, seen = threading.Event(), set[UUID]()

    def work() -> None:
        with get_client(sync_client=True) as client:
            while not ended.wait(0.05):
                for run in client.read_flow_runs(flow_run_filter=filter_):
                    if run.id not in seen:
                        seen.add(run.id)
                        asked.append(StageAsked.model_validate(run.parameters["asked"]))
                        state = answers.pop(0)(client, run.id, asked[-1])
                        client.set_flow_run_state(run.id, state, force=True)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield pool
    finally:
        ended.set()
        thread.join()


def crashed(*_: object) -> State[Any]:
    return Crashed(message="the worker is gone")


def publish(store: ArtifactStore, folder: Path, *, replace: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("a")
    output = StageOutput(files={"a.txt": "result"}, provenance={"resumed": True})
    store.publish(REQUEST, folder, output, replace=replace)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_lost_worker_is_asked_again_and_only_once_to_begin_anew(
    tmp_path: Path, is_there: bool
) -> None:
    store, asked = ArtifactStore(str(tmp_path / "store")), list[StageAsked]()
    if is_there:
        publish(store, tmp_path / "work")

    def make(*_: object) -> State[Any]:
        publish(store, tmp_path / "work", replace=is_there)
        return Completed()

    run = Run(store, Listener())
    with answered_by([crashed, crashed, make], asked) as pool:

        @flow
        def leader() -> None:
            elsewhere.make_elsewhere(run, asking(store, force=True), REQUEST, pool)

        leader()
    # Beside a published artifact a forced stage goes on by itself.
    assert [one.force for one in asked] == [True, is_there, is_there]
    assert run.records["shards"].state == "resumed"


def test_a_worker_that_is_lost_three_times_is_a_lost_job(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    run = Run(store, Listener())
    with answered_by([crashed] * 3, []) as pool:

        @flow
        def leader() -> None:
            elsewhere.make_elsewhere(run, asking(store), REQUEST, pool)

        with pytest.raises(JobLostError, match=f"on pool {pool} ended as Crashed"):
            leader()
    assert run.records["shards"].state == "failed"


class Shaky:
    """A client whose server does not answer so many times."""

    def __init__(self, client: SyncPrefectClient, failures: int) -> None:
        self._client, self.failures = client, failures

    def _fail(self) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise httpx.ConnectError("nobody there")

    def read_flow_run(self, flow_run_id: UUID) -> Any:
        self._fail()
        return self._client.read_flow_run(flow_run_id)

    def set_flow_run_state(self, flow_run_id: UUID, state: State[Any]) -> Any:
        self._fail()
        return self._client.set_flow_run_state(flow_run_id, state)


@contextmanager
def other_run(failures: int) -> Iterator[tuple[Any, UUID]]:
    """A client that fails at first, and a flow run that has ended, inside of a flow."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(stage_run, state=Completed())
        yield Shaky(client, failures), run.id


def test_a_server_that_is_away_for_a_while_ends_nothing() -> None:
    @flow
    def leader() -> bool:
        with other_run(3) as (client, run_id), elsewhere._stopped_with_us(client, run_id):
            return elsewhere._followed(client, run_id).is_completed()

    assert leader()


def test_a_server_that_stays_away_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elsewhere, "SERVER_SECONDS", 0.2)

    @flow
    def leader() -> None:
        with other_run(1000) as (client, run_id), elsewhere._stopped_with_us(client, run_id):
            elsewhere._followed(client, run_id)

    started = time.monotonic()
    with pytest.raises(JobLostError, match=r"has not answered .* Run again when it does"):
        leader()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("failures", [0, 1])
def test_a_stop_is_told_as_what_it_was_whether_or_not_it_could_be_passed_on(failures: int) -> None:
    states = []

    @flow
    def leader() -> None:
        with other_run(failures) as (shaky, _):
            run = shaky._client.create_flow_run(stage_run)
            try:
                with elsewhere._stopped_with_us(shaky, run.id):
                    raise JobStoppedError("somebody has asked for it")
            finally:
                states.append(shaky._client.read_flow_run(run.id).state)

    with pytest.raises(JobStoppedError, match="somebody"):
        leader()
    assert (states[0].is_cancelled() or states[0].is_cancelling()) == (failures == 0)


def test_an_artifact_tells_the_machine_that_made_it_not_the_one_that_asked(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {i} of them all, {i * i}." * 60 for i in range(60)))
    paths = (str(text),)
    source = resolve_files_source(paths)
    assert isinstance(source, FilesSource)
    store = ArtifactStore(str(tmp_path / "store"))
    asked = asking(
        store,
        recipe=ShardsRecipe(source=source).model_dump(mode="json"),
        source_paths=paths,
        provenance={"run": "of-the-leader", "hardware": {"cpu": "of the leader"}},
    )
    told = store.manifest(stage_run(asked)).provenance
    assert told["run"] == "of-the-leader"
    assert told["hardware"]["cpu"] != "of the leader"
    assert "prefect" in told["packages"]
