"""A stage on another work pool: asked for through a deployment, and found in the store after."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelling

from flows.stage_run import FLOW, StageAsked
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.errors import ConfigError, JobError, JobLostError, JobStoppedError
from tasks.cancelling import CancelWatch
from tasks.listening import StageRecord, StageState
from tasks.stage import LOST_JOB_RETRIES, Run

POLL_SECONDS = 1.0
SERVER_SECONDS = 900.0
"""How long a server may be away: longer than it takes to restart it, or to move its database."""


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
            asked = _asked_again(run, asked, request)
        ref = _found(run, request, state, f"{station} on pool {pool}")
    except BaseException as error:
        ended: StageState = "failed" if isinstance(error, Exception) else "stopped"
        record = StageRecord(
            station=station,
            state=ended,
            seconds=round(time.monotonic() - start, 3),
            message=str(error) or type(error).__name__,
        )
        _tell(run, record)
        raise
    _tell(run, _made_there(run, ref, time.monotonic() - start))
    return ref


def _asked_again(run: Run, asked: StageAsked, request: Request) -> StageAsked:
    """The same, but where nothing is published a forced stage would begin from nothing again."""
    force = asked.force and run.store.lookup_here(request) is not None
    return asked.model_copy(update={"force": force})


def _made_there(run: Run, ref: ArtifactRef, waited: float) -> StageRecord:
    """What it took over there, without the wait for a worker: forecasts learn from it."""
    manifest = run.store.manifest(ref)
    return StageRecord(
        station=ref.station,
        state="resumed" if manifest.provenance.get("resumed") else "made",
        seconds=round(float(manifest.provenance.get("seconds", waited)), 3),
        ref=ref,
        metrics=manifest.metrics,
    )


def _tell(run: Run, record: StageRecord) -> None:
    run.records[record.station] = record
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
            # So that a request whose answer was lost makes no second run of the same stage.
            idempotency_key=uuid4().hex,
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
            with suppress(httpx.HTTPError):
                client.set_task_run_name(started.parent_task_run_id, asked.station)
        with CancelWatch():
            return _followed(client, started.id)


def _followed(client: SyncPrefectClient, flow_run_id: UUID) -> State[Any]:
    """The last state of the other flow, which works on while the server does not answer."""
    answered = time.monotonic()
    while True:
        try:
            state = client.read_flow_run(flow_run_id).state
        except httpx.HTTPError as error:
            silent_seconds = time.monotonic() - answered
            if silent_seconds > SERVER_SECONDS:
                raise JobLostError(
                    f"the server has not answered for {silent_seconds:.0f} s ({error}), so nobody "
                    f"knows how the flow run {flow_run_id} went. Run again when it does: what is "
                    "finished is found, and what is not goes on from its last checkpoint"
                ) from error
            get_run_logger().warning("the server does not answer, asking again: %s", error)
        else:
            answered = time.monotonic()
            if state is not None and state.is_final():
                return state
        time.sleep(POLL_SECONDS)


@contextmanager
def _stopped_with_us(client: SyncPrefectClient, flow_run_id: UUID) -> Iterator[None]:
    try:
        yield
    except BaseException:
        try:
            client.set_flow_run_state(flow_run_id, Cancelling())
        except (httpx.HTTPError, PrefectException) as error:
            # Why this flow stops is what matters; the other one's work is kept, however it ends.
            get_run_logger().warning("flow run %s was not told to stop: %s", flow_run_id, error)
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
