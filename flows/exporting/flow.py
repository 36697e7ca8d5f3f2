"""One model out of the store as a folder for transformers. Importing this imports Prefect."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO
from uuid import uuid4

from prefect import flow
from pydantic import Field

from flows.exporting.inputs import model_ref, tokenizer_ref
from flows.gpu_slot import gpu_slot
from flows.local_server import LocalServer
from flows.running import watched
from flows.stage_run import open_run_store
from flows.terminal import make_view
from flows.this_machine import this_machine
from nanochat_core.artifacts.location import default_store_url
from nanochat_core.artifacts.types import EXPORT_STATION, ArtifactRef
from nanochat_core.config.base import Config
from nanochat_core.config.execution import Device, Execution
from nanochat_core.export.current_card import MODEL_INPUT, TOKENIZER_INPUT
from nanochat_core.export.recipe import ExportRecipe
from tasks.export import export as export_stage
from tasks.listening import current_listener
from tasks.stage import Run, StageCall


class ExportParameters(Config):
    """What `nanochat export` and a form in Prefect ask for."""

    model: str = Field("latest", description="alias, station/fingerprint, or tag as d12")
    store: str = Field("default", description="folder or fsspec URL of the artifact store")
    recipe: ExportRecipe = Field(default_factory=ExportRecipe, description="how much is compared")
    device: Device = Field("auto", description="where the two models are compared")
    force: bool = Field(False, description="make it again")
    wait: bool = Field(False, description="wait for another run that makes the same artifact")


@flow(name=EXPORT_STATION, flow_run_name="{asked.model}", persist_result=False)
def export_flow(asked: ExportParameters) -> ArtifactRef:
    """Export a model, or find its export in the store."""
    # The flow is an entry: the environment is read here, once, and passed down as values.
    environ: Mapping[str, str] = os.environ  # noqa: TID251
    url = default_store_url(environ) if asked.store == "default" else asked.store
    store = open_run_store(url, "")
    model = model_ref(store, asked.model)
    run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
    provenance = {"run": run_id, **this_machine()}
    run = Run(store, current_listener(), wait=asked.wait, provenance=provenance)
    call = StageCall(run, asked.recipe, Execution(device=asked.device), force=asked.force)
    call.slot = gpu_slot
    return export_stage(call, {MODEL_INPUT: model, TOKENIZER_INPUT: tokenizer_ref(store, model)})


def export_watched(
    asked: ExportParameters, server: LocalServer | None, output: TextIO
) -> ArtifactRef:
    """Run the flow in this process, and show how it goes."""
    view = make_view(output)
    with watched(view, server):
        view.planned((EXPORT_STATION,))
        ref: ArtifactRef = export_flow(asked)
    return ref
