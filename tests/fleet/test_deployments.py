"""deploy/prefect.yaml: what it offers exists, runs anywhere, and names no machine."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet_store import last_record, station_states
from fleet_tools import CHECKOUT, PrefectServer, Worker

from flows.presets import MAKING_STATIONS, STATIONS
from nanochat_core.artifacts.store import ArtifactStore

FILE = CHECKOUT / "deploy" / "prefect.yaml"
DATA_STATIONS = ("shards", "tokenizer", "tokens")
pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("fleet")]
JOBS = {"pretrain", "base_eval", "sft", "chat_eval_sft", "rl", "chat_eval_rl"}


@pytest.fixture(scope="module")
def listed() -> list[dict[str, Any]]:
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    deployments: list[dict[str, Any]] = content["deployments"]
    return deployments


def flow_of(entry: dict[str, Any]) -> Any:
    """The flow that an entrypoint names."""
    module, _, name = entry["entrypoint"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def names(listed: list[dict[str, Any]]) -> set[str]:
    return {f"{flow_of(entry).name}/{entry['name']}" for entry in listed}


def test_the_file_offers_these_deployments(listed: list[dict[str, Any]]) -> None:
    line = {f"speedrun/{name}" for name in ("speedrun", "fleet", "tokens", "pretrain", "sft", "rl")}
    sweeps = {"miniseries/miniseries", "scaling_laws/scaling-laws", "sweep/sweep"}
    assert names(listed) == line | sweeps | {"stage/cpu", "stage/gpu", "serve/serve"}


def test_a_run_that_is_not_heard_of_any_more_is_noticed_of_every_flow(
    listed: list[dict[str, Any]],
) -> None:
    from flows.bootstrap import FLOWS

    assert {flow_of(entry).name for entry in listed} == {*FLOWS}


def test_every_parameter_is_one_that_its_flow_takes(listed: list[dict[str, Any]]) -> None:
    for entry in listed:
        parameters = entry.get("parameters", {})
        # The flow `stage` has no default: whoever sends a stage gives it.
        if entry["entrypoint"].startswith("flows.stage_run."):
            assert parameters == {}
        else:
            assert parameters.items() <= flow_of(entry).validate_parameters(parameters).items()


def test_what_stops_early_is_named_after_its_last_station(listed: list[dict[str, Any]]) -> None:
    stops = {
        entry["name"]: entry["parameters"]["stop_after"]
        for entry in listed
        if "stop_after" in entry.get("parameters", {})
    }
    assert all(name == station and station in STATIONS for name, station in stops.items())
    assert set(stops) == {"tokens", "pretrain", "sft", "rl"}


def test_the_fleet_sends_every_job_to_a_pool_that_takes_stages(
    listed: list[dict[str, Any]],
) -> None:
    (pools,) = (entry["parameters"]["stage_pools"] for entry in listed if entry["name"] == "fleet")
    assert set(pools) == JOBS < set(MAKING_STATIONS)
    assert {f"stage/{pool}" for pool in pools.values()} <= names(listed)
    takers = {entry["name"]: entry["work_pool"]["name"] for entry in listed}
    assert (takers["cpu"], takers["gpu"]) == ("cpu", "gpu")


def test_bootstrap_creates_them_all_without_a_path_of_this_machine(
    fleet: PrefectServer, listed: list[dict[str, Any]]
) -> None:
    for name in names(listed):
        found = fleet.call("GET", f"/deployments/name/{name}")
        assert found["pull_steps"] == []
        assert found["path"] is None
        assert str(CHECKOUT) not in json.dumps(found)
        assert str(Path.home()) not in json.dumps(found)
        assert found["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    pools = fleet.call("POST", "/work_pools/filter", {})
    assert {(pool["name"], pool["type"]) for pool in pools} >= {
        ("cpu", "process"),
        ("gpu", "process"),
    }


def test_prefect_deploys_the_file_by_itself(fleet: PrefectServer) -> None:
    """As people do it who know Prefect, from the checkout, with the relative path."""
    before = fleet.call("GET", "/deployments/name/speedrun/fleet")
    fleet.prefect("deploy", "--all", "--prefect-file", "deploy/prefect.yaml")
    after = fleet.call("GET", "/deployments/name/speedrun/fleet")
    changing = ("updated", "last_polled", "status")
    assert {key: value for key, value in after.items() if key not in changing} == {
        key: value for key, value in before.items() if key not in changing
    }


def run_tokens(fleet: PrefectServer, folder: Path, store: Path) -> Worker:
    """The deployment `tokens`, run to its end by a worker whose home and folder are these."""
    worker = Worker(fleet, "cpu", folder, {"NANOCHAT_STORE": str(store)})
    try:
        worker.start()
        fleet.run_by_command("-p", "preset=tiny", deployment="speedrun/tokens").completed(120)
        worker.seconds_until_idle(30)
    finally:
        worker.remove()
    return worker


def test_a_worker_elsewhere_runs_a_deployment(fleet: PrefectServer, tmp_path: Path) -> None:
    store = tmp_path / "store"
    worker = run_tokens(fleet, tmp_path / "there", store)
    record = last_record(ArtifactStore(str(store)))
    assert station_states(record) == dict.fromkeys(DATA_STATIONS, "made")
    assert record["parameters"]["stop_after"] == "tokens"
    left = {path.name for path in worker.folder.iterdir()}
    assert left == {"home", worker.log_path.name}


@pytest.mark.long
def test_a_worker_in_another_folder_goes_on_where_the_first_has_ended(
    fleet: PrefectServer, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for name, state in (("one", "made"), ("two", "cached")):
        run_tokens(fleet, tmp_path / name, store)
        record = last_record(ArtifactStore(str(store)))
        assert station_states(record) == dict.fromkeys(DATA_STATIONS, state)
