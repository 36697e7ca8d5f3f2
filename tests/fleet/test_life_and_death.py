"""Whatever ends a run on a fleet: a checkpoint stays, no process does, and it can be continued."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fleet_runs import FlowRun
from fleet_scenes import CHECKPOINT_EVERY, EVENTS, TRAINING, Event, Row, Scene, watch, write_table
from fleet_store import (
    LocalRun,
    copy_store,
    digests,
    last_record,
    looking_into,
    station_states,
)
from fleet_tools import Machines, PrefectServer, tell
from s3_server import S3Server

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.s3,
    pytest.mark.long,
    pytest.mark.timeout(2_400),
    pytest.mark.xdist_group("fleet"),
]

STEPS_WHILE_UPLOADING = 15
"""A checkpoint counts once the bucket has all of it; training goes on meanwhile."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Row]]:
    """The table, shown after every line that is added."""
    found: list[Row] = []
    yield found
    tell(f"\n{write_table(found, tmp_path_factory.getbasetemp())}")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an uninterrupted run on one machine, in a folder, comes to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with LocalRun(folder, "tiny", TRAINING, stop_after="pretrain") as local:
        return local.digests()


@pytest.fixture(scope="module")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A bucket server that may be killed."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def prepared(
    fleet: PrefectServer, store_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A store that has what pretraining needs."""
    machines = Machines(fleet, store_server, tmp_path_factory.mktemp("prepare"))
    try:
        machines.start("preparer")
        url = store_server.new_bucket()
        fleet.run("speedrun/tokens", preset="tiny", store=url).completed(600)
        return url
    finally:
        machines.remove()


@pytest.fixture
def scene(
    fleet: PrefectServer, store_server: S3Server, prepared: str, tmp_path: Path
) -> Iterator[Scene]:
    """A worker that has begun to train, with checkpoints in the bucket."""
    url = f"{prepared}-{uuid4().hex[:8]}"
    copy_store(store_server, prepared, url, ("shards", "tokenizer", "tokens"))
    machines = Machines(fleet, store_server, tmp_path)
    try:
        worker = machines.start("first")
        run = fleet.run("speedrun/speedrun", **parameters(url))
        scene = Scene(fleet, store_server, machines, url, worker, run)
        scene.wait_for_step(2 * CHECKPOINT_EVERY)
        yield scene
    finally:
        machines.remove()


def parameters(url: str) -> dict[str, Any]:
    """A dead machine holds its lease for a minute, so the next one waits for it."""
    asked = {"preset": "tiny", "store": url, "stop_after": "pretrain", "wait": True}
    return {**asked, "overrides": TRAINING}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name.replace(" ", "-"))
def test_a_run_ends_in_order_and_is_continued_elsewhere(
    scene: Scene, event: Event, straight: dict[str, str], rows: list[Row], tmp_path: Path
) -> None:
    row = watch(scene, event)
    rows.append(row)
    story = scene.run.story()
    if not event.survives:
        scene.worker.lose()
        scene.machines.start("second")
    row.how = event.how
    again = scene.again(event.how, parameters(scene.url))
    again.completed(900)
    with looking_into(scene.store_server, scene.url, tmp_path / "cache") as store:
        (base,) = store.list("pretrain")
        row.continued_from = store.manifest(base).provenance.get("resumed_from_step") or 0
        row.equal = digests(store) == straight
        state = station_states(last_record(store))["pretrain"]
    tell(write_table([row], tmp_path))
    check(row, event, story)
    check_continued(row, event, state, again)


def check(row: Row, event: Event, story: str) -> None:
    """How the run has ended."""
    assert row.state == event.state, story
    assert row.state_after <= event.within, story
    assert row.orphans == 0, row.notes
    assert row.steps_lost <= CHECKPOINT_EVERY + STEPS_WHILE_UPLOADING, row


def check_continued(row: Row, event: Event, state: str, again: FlowRun) -> None:
    """How the next one went."""
    assert row.equal, row
    if event.survives:
        assert state == "cached", again.story()
        return
    assert state == "resumed", again.story()
    assert row.continued_from >= row.checkpoint_step > 0, row
