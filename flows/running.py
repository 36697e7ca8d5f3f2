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
from tasks.listening import listening

HEARTBEAT_SECONDS = 30
"""A third of what the watch of `nanochat bootstrap` waits."""


def run_watched(
    parameters: RunParameters,
    stations: tuple[str, ...],
    server: LocalServer | None,
    output: TextIO,
) -> View:
    """Run the line and show it; the view knows how each stage went, and what is said at the end."""
    view = make_view(output)
    with watched(view, server):
        view.planned(stations)
        run_line(parameters)
    return view


@contextmanager
def watched(view: View, server: LocalServer | None) -> Iterator[None]:
    """Let the view hear and show what flows do in this block, once the server answers."""
    with view, _warnings_shown(view), listening(view):
        if server is not None:
            server.wait()
        # They tell a lasting server of a dead run (`nanochat bootstrap` sets the watch), and cost a
        # second at every end.
        heartbeat = HEARTBEAT_SECONDS if server is None else None
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: heartbeat}):
            yield


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
