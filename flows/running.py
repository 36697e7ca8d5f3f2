"""Run the flow in this process, watched. Importing this module imports Prefect."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.local_server import LocalServer
from flows.parameters import RunParameters
from flows.speedrun import speedrun
from flows.terminal import ShowWarnings, View, make_view
from nanochat_core.artifacts.types import ArtifactRef
from tasks.listening import StageRecord, listening


def run_watched(
    parameters: RunParameters,
    stations: tuple[str, ...],
    server: LocalServer | None,
    output: TextIO,
) -> dict[str, StageRecord]:
    """Run the line and show it; returns how each stage went."""
    with make_view(output) as view, _warnings_shown(view), listening(view):
        view.planned(stations)
        if server is not None:
            server.wait()
        if server is None:
            run_line(parameters)
        else:
            # Heartbeats tell a lasting server of a dead run, and cost a second at every end.
            with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                run_line(parameters)
        return view.records


def run_line(parameters: RunParameters) -> ArtifactRef | None:
    """Run the flow with these parameters; gives the model that was released."""
    released: ArtifactRef | None = speedrun(**parameters.model_dump())
    return released


@contextmanager
def _warnings_shown(view: View) -> Iterator[None]:
    logger, handler = logging.getLogger("nanochat_core"), ShowWarnings(view)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
