"""Station `release`: makes no artifact; moves the names by which people ask for the model."""

import time
from typing import Any

from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from nanochat_core.artifacts.types import ArtifactRef
from tasks.listening import StageRecord, StageState
from tasks.reporting import publish_model
from tasks.stage import Run

STATION = "release"
LATEST = "latest"


def release(run: Run, preset: str, model: ArtifactRef) -> ArtifactRef:
    """Let the aliases `<preset>` and `latest` name `model`; safe to repeat."""
    run.listener.started(STATION)
    start = time.monotonic()
    state: State[Any] = _release_task(run, (preset, LATEST), model, return_state=True)
    state.result()
    went: StageState = "cached" if state.name == "Cached" else "made"
    record = StageRecord(
        station=STATION,
        state=went,
        seconds=round(time.monotonic() - start, 3),
        ref=model,
        message=str(state.message or ""),
    )
    run.records[STATION] = record
    run.listener.ended(record)
    return model


def _move_aliases(run: Run, names: tuple[str, ...], model: ArtifactRef) -> State[Any]:
    """Move the aliases; the state is Cached when they already stood right."""
    moved = [name for name in names if run.store.set_alias(name, model)]
    folder = run.store.files.local_path("")
    publish_model(model, run.store.url if folder is None else str(folder.absolute()), names)
    if not moved:
        message = f"{', '.join(names)} already name {model.short}"
        return Completed(name="Cached", message=message, data=model)
    message = f"{', '.join(moved)} -> {model.short}"
    get_run_logger().info(message)
    return Completed(message=message, data=model)


_release_task: Any = Task(
    _move_aliases, name=STATION, task_run_name=STATION, cache_policy=NO_CACHE, persist_result=False
)
