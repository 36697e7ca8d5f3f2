"""One station as a flow of its own: how a stage is made by a worker on another pool."""

import importlib
from typing import Any

from prefect import flow
from pydantic import Field

from flows.gpu_slot import gpu_slot
from flows.overrides import one_of
from flows.presets import JOB_STATIONS, MAKING_STATIONS, Recipes
from flows.this_machine import this_machine
from nanochat_core.artifacts.store import ArtifactStore, only_read
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.base import Config, Recipe
from nanochat_core.config.execution import Execution
from tasks.listening import current_listener
from tasks.stage import Run, Stage, StageCall

FLOW = "stage"


class StageAsked(Config):
    """What a worker is told of one stage. Only references travel; bytes go through the store.

    The recipe comes whole: worked out again over there, it could differ (the versions of what is
    installed, an environment variable), and so would the artifact.
    """

    station: str = Field(description="which one")
    recipe: dict[str, Any] = Field(description="what is computed")
    execution: Execution = Field(description="where and how")
    inputs: dict[str, ArtifactRef] = Field(description="what it is made from")
    source_paths: tuple[str, ...] = Field((), description="what the user named for it to read")
    store: str = Field(description="folder or fsspec URL of the artifact store")
    upstream: str = Field("", description="another store, only read")
    force: bool = Field(False, description="make it again")
    wait: bool = Field(False, description="wait for another run that makes the same artifact")
    provenance: dict[str, Any] = Field({}, description="the run that has asked for it")


@flow(name=FLOW, flow_run_name="{asked.station}", persist_result=False)
def stage_run(asked: StageAsked) -> ArtifactRef:
    """Make one artifact, or find it in the store; `stage_pools` of a run sends its stages here."""
    store = open_run_store(asked.store, asked.upstream)
    provenance = {**asked.provenance, **this_machine()}
    run = Run(store, current_listener(), wait=asked.wait, provenance=provenance)
    recipe = recipe_of(asked.station, asked.recipe)
    call = StageCall(run, recipe, asked.execution, force=asked.force)
    call.source_paths = asked.source_paths
    if asked.station in JOB_STATIONS:
        call.slot = gpu_slot
    return stage_of(asked.station)(call, asked.inputs)


def open_run_store(url: str, upstream: str) -> ArtifactStore:
    """The store of a run, known to be writable, with the one that it asks for what it lacks."""
    store = ArtifactStore(url, upstream=only_read(upstream) if upstream else None)
    store.check_writable()
    return store


def recipe_of(station: str, values: dict[str, Any]) -> Recipe:
    """The recipe of a station from plain values."""
    one_of("station", station, MAKING_STATIONS)
    kind: Any = Recipes.model_fields[station].annotation
    recipe: Recipe = kind.model_validate(values)
    return recipe


def stage_of(station: str) -> Stage:
    """The stage of a station: one word names the module and the stage in it."""
    one_of("station", station, MAKING_STATIONS)
    made: Stage = getattr(importlib.import_module(f"tasks.{station}"), station)
    return made
