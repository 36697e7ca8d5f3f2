"""A stage on another work pool: asked for through a deployment, and found in the store after."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows.stage_run import FLOW, StageAsked
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.errors import ConfigError, JobError, JobLostError, JobStoppedError
from tasks.cancelling import CancelWatch
from tasks.listening import StageRecord
from tasks.stage import LOST_JOB_RETRIES, Run

POLL_SECONDS = 1.0


def make_elsewhere(run: Run, asked: StageAsked, request: Request, pool: str) -> ArtifactRef:
    """The artifact of `request`, made by a worker of `pool` through the deployment `stage/pool`.

    A worker that is lost is asked again, twice, and its successor goes on from what was saved.
    Raises the kind of error that says how it ended; a stop of this flow stops the other one.
    """
    station, start = asked.station, time.monotonic()
    run.listener.started(station)
    try:
        for attempt in range(LOST_JOB_RETRIES + 1):
            state = _run_there(asked, pool)
            if state.type != StateType.CRASHED:
                break
            get_run_logger().warning("%s was lost on pool %s (try %d)", station, pool, attempt + 1)
        ref = _found(run, request, state, f"{station} on pool {pool}")
    except BaseException as error:
        how = "failed" if isinstance(error, Exception) else "stopped"
        _tell(run, station, how, start, message=str(error) or type(error).__name__)
        raise
    manifest = run.store.manifest(ref)
    resumed = manifest.provenance.get("resumed")
    _tell(run, station, "resumed" if resumed else "made", start, ref=ref, metrics=manifest.metrics)
    return ref


def _tell(run: Run, station: str, state: Any, start: float, **more: Any) -> None:
    seconds = round(time.monotonic() - start, 3)
    record = StageRecord(station=station, state=state, seconds=seconds, **more)
    run.records[station] = record
    run.listener.ended(record)


def _run_there(asked: StageAsked, pool: str) -> State[Any]:
    """Start the other flow, follow it, and return its last state."""
    try:
        # Only the start: whoever waits inside of Prefect cannot pass on a stop.
        started: Any = run_deployment(
            f"{FLOW}/{pool}",
            parameters={"asked": asked.model_dump(mode="json")},
            flow_run_name=asked.station,
            timeout=0,
        )
    except ObjectNotFound as error:
        raise ConfigError(
            f"{asked.station} is sent to pool {pool!r}, which has no deployment {FLOW}/{pool}; "
            "make both with `nanochat bootstrap`, and start a worker there"
        ) from error
    get_run_logger().info(
        "%s is made on pool %s, as flow run %s", *(asked.station, pool, started.name)
    )
    with get_client(sync_client=True) as client, _stopped_with_us(client, started.id):
        if started.parent_task_run_id is not None:
            # What stands for it on the page of this run, among the stages that are made here.
            client.set_task_run_name(started.parent_task_run_id, asked.station)
        cancelled = CancelWatch()
        while True:
            cancelled()
            state = client.read_flow_run(started.id).state
            if state is not None and state.is_final():
                return state
            time.sleep(POLL_SECONDS)


@contextmanager
def _stopped_with_us(client: SyncPrefectClient, flow_run_id: UUID) -> Iterator[None]:
    try:
        yield
    except BaseException:
        client.set_flow_run_state(flow_run_id, Cancelling())
        raise


def _found(run: Run, request: Request, state: State[Any], what: str) -> ArtifactRef:
    message = f"{what} ended as {state.name}: {state.message or 'no message'}"
    if state.is_cancelled():
        raise JobStoppedError(message)
    if state.is_crashed():
        raise JobLostError(f"{message}; run again to go on from its last checkpoint")
    if not state.is_completed():
        raise JobError(f"{message}; its own page and log tell more")
    if (ref := run.store.lookup(request)) is None:
        raise JobError(
            f"{message}, but {run.store.url} has no {request.short}: do all workers see the same "
            "store? Give a URL that is one place for all (s3://…)"
        )
    return ref
