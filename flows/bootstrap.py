"""What a Prefect server needs before workers can share the work; safe to repeat."""

import itertools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from flows.gpu_slot import LIMIT
from nanochat_core.config.base import Config
from nanochat_core.errors import ConfigError, NanochatError

DEPLOYMENTS_FILE = Path(__file__).resolve().parents[1] / "deploy" / "prefect.yaml"
DEFAULT_GPU_LIMIT = 1
POOL_TYPE = "process"
WATCH = "nanochat: a run that is not heard of any more is crashed"
SILENT_SECONDS = 90
"""Three heartbeats of the deployments: two may be lost on a busy machine."""
FLOWS = ("speedrun", "stage", "serve", "miniseries", "scaling_laws", "sweep")
"""Only ours: other flows on the server may send a heartbeat less often than the window."""
PAGE = 200
DEPLOYMENT_FIELDS = {
    *("entrypoint", "pull_steps", "path", "version", "parameters", "parameter_openapi_schema"),
    *("description", "tags", "work_pool_name", "job_variables", "paused", "concurrency_limit"),
}

Went = Literal["made", "changed", "found"]


class Step(Config):
    """One thing that the server needs, and whether it was there."""

    what: str
    went: Went


def check_server() -> str:
    """The URL of the server that is configured; NanochatError when there is none, or no answer."""
    url = get_current_settings().api.url
    if not url:
        raise NanochatError(
            "no Prefect server is named; start one with `prefect server start` and give its "
            "address, as in PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True) as client:
        if trouble := client.api_healthcheck():
            raise NanochatError(f"no Prefect server answers at {url} ({trouble}); start it first")
    return url


def prepare(file: Path, gpu_limit: int | None, environ: Mapping[str, str]) -> Iterator[Step]:
    """Make what is missing, change what differs, and say so step by step."""
    pools = pool_names(file)
    try:
        with get_client(sync_client=True) as client:
            for pool in pools:
                yield _with_pool(client, pool)
            yield _with_gpu_limit(client, gpu_limit)
            yield _with_watch(client)
            yield from _with_deployments(client, file, environ)
    except httpx.HTTPError as error:
        raise NanochatError(f"the Prefect server refused: {error}") from error


def pool_names(file: Path) -> list[str]:
    """The work pools that the deployments of a file name, sorted."""
    return sorted({entry["work_pool"]["name"] for entry in _entries(file)})


def _entries(file: Path) -> list[dict[str, Any]]:
    """The deployments of a file, each with a name, an entrypoint and a work pool."""
    try:
        entries: list[dict[str, Any]] = yaml.safe_load(file.read_bytes())["deployments"]
        for entry in entries:
            entry["name"], entry["entrypoint"], entry["work_pool"]["name"]
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read ({error.strerror}); give --deployments the deploy/prefect.yaml "
            "of a checkout"
        ) from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file}: expected deployments, each with a name, an entrypoint and the name of a "
            f"work pool, as in deploy/prefect.yaml ({error!r})"
        ) from error
    return entries


def _with_pool(client: SyncPrefectClient, name: str) -> Step:
    try:
        # Of whatever type: who made it as one of containers wants it so.
        pool, went = client.read_work_pool(name), "found"
    except ObjectNotFound:
        pool, went = client.create_work_pool(WorkPoolCreate(name=name, type=POOL_TYPE)), "made"
    return Step(what=f"work pool {name} ({pool.type})", went=went)


def _with_gpu_limit(client: SyncPrefectClient, wanted: int | None) -> Step:
    try:
        limit = client.read_global_concurrency_limit_by_name(LIMIT).limit
    except ObjectNotFound:
        limit = wanted or DEFAULT_GPU_LIMIT
        client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=LIMIT, limit=limit)
        )
        return Step(what=_limit_text(limit), went="made")
    if wanted is None or wanted == limit:
        return Step(what=_limit_text(limit), went="found")
    client.update_global_concurrency_limit(LIMIT, GlobalConcurrencyLimitUpdate(limit=wanted))
    return Step(what=f"{_limit_text(wanted)}, was {limit}", went="changed")


def _limit_text(limit: int) -> str:
    return f"concurrency limit {LIMIT} ({limit} at once)"


def watch() -> AutomationCore:
    """The automation that ends runs whose process is gone: nothing else in Prefect does.

    Any event of the run counts as a sign of life, so that a run which ends, or is paused, is left
    alone.
    """
    return AutomationCore(
        name=WATCH,
        description=f"no heartbeat for {SILENT_SECONDS} s: its process or machine was lost",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related={
                "prefect.resource.role": ["flow"],
                "prefect.resource.name": list(FLOWS),
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"not heard of for {SILENT_SECONDS} s. Run again with the same parameters: "
                "finished stages are kept, and the one under way continues.",
            )
        ],
    )


def _with_watch(client: SyncPrefectClient) -> Step:
    wanted, what = watch(), f"automation '{WATCH}'"
    present = client.read_automations_by_name(WATCH)
    if not present:
        client.create_automation(wanted)
        return Step(what=what, went="made")
    # Whether it is switched on is the user's to say.
    wanted.enabled = present[0].enabled
    if _core(present[0]) == _core(wanted):
        return Step(what=what, went="found")
    client.update_automation(present[0].id, wanted)
    return Step(what=what, went="changed")


def _core(automation: AutomationCore) -> dict[str, Any]:
    return AutomationCore(**automation.model_dump()).model_dump(mode="json")


def _with_deployments(
    client: SyncPrefectClient, file: Path, environ: Mapping[str, str]
) -> Iterator[Step]:
    before = _deployments(client)
    _deploy(file, environ)
    listed = {(entry["name"], entry["entrypoint"]) for entry in _entries(file)}
    for name, values in sorted(_deployments(client).items()):
        if (name.partition("/")[2], values["entrypoint"]) in listed:
            old = before.get(name)
            went: Went = "made" if old is None else "found" if old == values else "changed"
            yield Step(what=f"deployment {name}", went=went)


def _deploy(file: Path, environ: Mapping[str, str]) -> None:
    # Prefect's own command: what it adds (schema of the parameters, version) is no public function.
    deployed = subprocess.run(
        [
            *(sys.executable, "-m", "prefect", "--no-prompt"),
            *("deploy", "--all", "--prefect-file", str(file)),
        ],
        # The server may be named by a profile, or by the program that this is called from.
        env={**environ, **get_current_settings().to_environment_variables(exclude_unset=True)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if deployed.returncode != 0:
        last = "\n".join((deployed.stdout + deployed.stderr).strip().splitlines()[-15:])
        raise NanochatError(f"`prefect deploy` of {file} failed:\n{last}")


def _deployments(client: SyncPrefectClient) -> dict[str, dict[str, Any]]:
    """Flow and name -> what a deployment is, without what changes by itself."""
    found, flows = {}, {}
    for offset in itertools.count(0, PAGE):
        page = client.read_deployments(limit=PAGE, offset=offset)
        for deployment in page:
            if deployment.flow_id not in flows:
                flows[deployment.flow_id] = client.read_flow(deployment.flow_id).name
            name = f"{flows[deployment.flow_id]}/{deployment.name}"
            found[name] = deployment.model_dump(mode="json", include=DEPLOYMENT_FIELDS)
        if len(page) < PAGE:
            return found
    raise AssertionError("pages do not end")
