"""Run the flow of a sweep in this process, watched. Importing this module imports Prefect."""

from typing import Any

from flows.local_server import LocalServer
from flows.running import watched
from flows.sweeps.miniseries import miniseries
from flows.sweeps.parameters import AnySweep
from flows.sweeps.scaling_laws import scaling_laws
from flows.sweeps.sweep import sweep
from flows.sweeps.view import SweepView
from nanochat_core.artifacts.types import ArtifactRef

FLOWS: dict[str, Any] = {flow.name: flow for flow in (miniseries, scaling_laws, sweep)}


def run_sweep(asked: AnySweep) -> ArtifactRef:
    """Run the flow with these parameters; gives the artifact with the table and the plots."""
    made: ArtifactRef = FLOWS[asked.kind](**asked.model_dump())
    return made


def run_sweep_watched(asked: AnySweep, view: SweepView, server: LocalServer | None) -> ArtifactRef:
    """Run the sweep and show it; the view knows what is said at the end."""
    with watched(view, server):
        return run_sweep(asked)
