"""The function behind `nanochat bootstrap`; `flows.cli` registers it."""

import os
from pathlib import Path
from typing import Annotated

import typer

EPILOG_LINES = (
    "nanochat bootstrap                  twice is as good as once",
    "nanochat bootstrap --gpu-limit 4    as many stages on GPUs at once",
    "prefect worker start --pool cpu     what then runs the deployments",
    "prefect deployment run speedrun/speedrun -p preset=tiny",
    "",
    "The server is the one of PREFECT_API_URL or of the Prefect profile in use.",
)


def bootstrap(
    gpu_limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            show_default=False,
            help="stages that compute on GPUs at once; default: as it is, or 1",
        ),
    ] = None,
    deployments: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="default: deploy/prefect.yaml of the checkout that is installed",
        ),
    ] = None,
) -> None:
    """Make a Prefect server ready for a fleet: pools, GPU limit, watch, deployments.

    The work pools that the deployments name, a limit for stages on GPUs, an automation that marks
    runs as Crashed when they are not heard of any more, and the deployments themselves. What is
    there already stays as it is.
    """
    from flows.bootstrap import DEPLOYMENTS_FILE, check_server, prepare

    typer.echo(f"Prefect server at {check_server()}")
    environ = os.environ  # noqa: TID251  an entry: read here, passed down as values
    for step in prepare(deployments or DEPLOYMENTS_FILE, gpu_limit, environ):
        typer.echo(f"{step.went:<8} {step.what}")
