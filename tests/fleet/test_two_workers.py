"""A line on machines that share nothing but a bucket and a Prefect server: run, killed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_runs import FlowRun, until
from fleet_store import (
    LocalRun,
    digests,
    last_record,
    looking_into,
    newest_step,
    station_states,
)
from fleet_tools import Machines, PrefectServer, options_of, tell
from s3_server import SECRET_KEY, S3Server

pytestmark = [pytest.mark.prefect, pytest.mark.s3, pytest.mark.xdist_group("fleet")]

PICK_UP_SECONDS = 10.0
"""What the issue asks of a run that finds everything; a busy machine gets three times as much."""
BUSY = 3.0
SHORT = {
    "pretrain.num_iterations": 120,
    "pretrain.tokens_per_step": 2_048,
    "pretrain.checkpoint_every": 10,
    "pretrain.eval_every": -1,
}
"""Some ten seconds of training: enough to be killed in."""


@pytest.fixture
def straight(tmp_path: Path) -> Iterator[LocalRun]:
    """The short training on one machine, which begins at once."""
    with LocalRun(tmp_path / "local", "tiny", SHORT, stop_after="pretrain") as local:
        yield local


@pytest.fixture
def straight_line(tmp_path: Path) -> Iterator[LocalRun]:
    """The whole line on one machine, which begins at once."""
    with LocalRun(tmp_path / "local", "tiny", {}) as local:
        yield local


def tiny(url: str, **more: Any) -> dict[str, Any]:
    return {"preset": "tiny", "store": url, **more}


def check_all_cached(run: FlowRun, stations: set[str]) -> None:
    """A run that has found everything, as its page shows it."""
    states = run.task_runs()
    assert {name for name, state in states.items() if state.name == "Cached"} == stations
    assert all("cache hit" in states[name].message for name in stations - {"release"})
    tell(f"{len(stations)} stations, all Cached: {run.seconds_from_pick_up:.1f} s from pick-up")
    assert run.seconds_from_pick_up < BUSY * PICK_UP_SECONDS


def test_what_one_machine_has_made_is_found_by_another_and_no_key_is_left_anywhere(
    fleet: PrefectServer, machines: Machines, s3_server: S3Server, s3_url: str, tmp_path: Path
) -> None:
    asked = options_of(tiny(s3_url, stop_after="tokens"))
    first = machines.start("first")
    made = fleet.run_by_command(*asked).completed(120)
    assert {state.name for state in made.task_runs().values()} == {"Completed"}
    first.lose()
    second = machines.start("second")
    found = fleet.run_by_command(*asked).completed(60)
    check_all_cached(found, {"shards", "tokenizer", "tokens"})
    second.seconds_until_idle(30)
    with looking_into(s3_server, s3_url, tmp_path / "cache") as store:
        assert set(station_states(last_record(store)).values()) == {"cached"}
    check_no_secret(machines, s3_server, s3_url)


@pytest.mark.long
@pytest.mark.timeout(420)
def test_another_machine_continues_what_a_killed_worker_has_begun(
    fleet: PrefectServer,
    machines: Machines,
    s3_server: S3Server,
    s3_url: str,
    straight: LocalRun,
    tmp_path: Path,
) -> None:
    first = machines.start("first")
    # The lease of a machine that is gone lasts for another minute.
    asked = options_of(tiny(s3_url, stop_after="pretrain", overrides=SHORT, wait=True))
    run = fleet.run_by_command(*asked)
    until(lambda: newest_step(s3_server, s3_url) >= 20, 120, run.story)
    first.lose()
    saved = newest_step(s3_server, s3_url)
    machines.start("second")
    again = fleet.run_by_command(*asked).completed(240)
    with looking_into(s3_server, s3_url, tmp_path / "cache") as store:
        assert station_states(last_record(store))["pretrain"] == "resumed", again.story()
        (base,) = store.list("pretrain")
        resumed_from = store.manifest(base).provenance["resumed_from_step"]
        assert digests(store) == straight.digests()
    tell(f"killed with step {saved} in the store; the other one went on from {resumed_from}")
    assert resumed_from >= saved > 0
    third = fleet.run_by_command(*asked).completed(60)
    check_all_cached(third, {"shards", "tokenizer", "tokens", "pretrain"})


def check_no_secret(machines: Machines, server: S3Server, url: str) -> None:
    """The key of the bucket is in no file of server and workers, and in no object of the store."""
    key = SECRET_KEY.encode()
    folders = (machines.server.folder, machines.folder)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    assert [str(path) for path in files if key in path.read_bytes()] == []
    client, bucket = server.client(), url.removeprefix("s3://").partition("/")[0]
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    names = [item["Key"] for page in pages for item in page.get("Contents", ())]
    assert any("/runs/" in name for name in names)
    for name in names:
        assert key not in client.get_object(Bucket=bucket, Key=name)["Body"].read(), name


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_whole_line_completes_and_a_second_run_finds_everything(
    fleet: PrefectServer,
    machines: Machines,
    s3_server: S3Server,
    s3_url: str,
    straight_line: LocalRun,
    tmp_path: Path,
) -> None:
    machines.start("first")
    machines.start("second")
    fleet.run_by_command(*options_of(tiny(s3_url))).completed(600)
    second = fleet.run_by_command(*options_of(tiny(s3_url))).completed(60)
    with looking_into(s3_server, s3_url, tmp_path / "cache") as store:
        made = digests(store)
        assert set(station_states(last_record(store)).values()) == {"cached"}
    assert made.pop("report")  # names the machine and the seconds
    expected = straight_line.digests()
    assert expected.pop("report")
    assert made == expected
    check_all_cached(second, {*expected, "report", "release"})


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_the_demo_completes_and_a_second_run_finds_everything(
    fleet: PrefectServer, machines: Machines, s3_server: S3Server, s3_url: str, tmp_path: Path
) -> None:
    machines.start("first")
    asked = {"preset": "demo", "store": s3_url}
    fleet.run_by_command(*options_of(asked)).completed(3_000)
    second = fleet.run_by_command(*options_of(asked)).completed(60)
    with looking_into(s3_server, s3_url, tmp_path / "cache") as store:
        made = set(digests(store))
    check_all_cached(second, {*made, "release"})


@pytest.mark.long
@pytest.mark.timeout(600)
def test_stages_are_made_on_the_pools_that_they_are_sent_to(
    fleet: PrefectServer,
    machines: Machines,
    s3_server: S3Server,
    s3_url: str,
    straight: LocalRun,
    tmp_path: Path,
) -> None:
    machines.start("leader")
    there = machines.start("trainer", "gpu")
    pools = {"pretrain": "gpu", "tokens": "cpu"}
    asked = tiny(s3_url, stop_after="pretrain", overrides=SHORT, stage_pools=pools)
    run = fleet.run_by_command(*options_of(asked)).completed(400)
    sent = {one.values["name"]: one.values["work_pool_name"] for one in run.subflow_runs()}
    assert sent == pools, run.story()
    assert "train" in there.log
    with looking_into(s3_server, s3_url, tmp_path / "cache") as store:
        assert digests(store) == straight.digests()
    again = fleet.run_by_command(*options_of(asked)).completed(60)
    assert again.subflow_runs() == []
    tell(f"a second run, sent nowhere: {again.seconds_from_pick_up:.1f} s from pick-up")
