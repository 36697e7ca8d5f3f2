"""The function behind `nanochat plan`; `flows.cli` registers it."""

import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.run_options import takes_run_options

EPILOG_LINES = (
    "nanochat plan demo                          what is cached, what will take how long",
    "nanochat plan demo --depth 4                of a deeper model",
    "nanochat plan demo --price-per-hour 3       and what it costs",
    "nanochat plan demo --on H100 --set pretrain.ranks=8   elsewhere",
    "nanochat plan demo --bench step.json        by what bench train --out wrote there",
    "",
    "Times come from the records of this store; every finished run makes them better.",
)


@takes_run_options
def plan(
    parameters: Any,
    price_per_hour: Annotated[
        float | None,
        typer.Option(metavar="PRICE", min=0.0, show_default=False, help="of all machines together"),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            "--on", metavar="GPU", show_default=False, help="for a machine with such GPUs: H100"
        ),
    ] = "",
    bench: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="times by what nanochat bench train --out wrote",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, no table")] = False,
) -> None:
    """See before you pay: what a run finds in the store, and what the rest will take.

    Takes the options of `nanochat run`, makes nothing and writes nothing.
    """
    environ = os.environ  # noqa: TID251  an entry: read here, passed down as values
    from flows.forecast.asking import Question, ask
    from flows.forecast.page import forecast_lines

    found = ask(Question(parameters, price_per_hour, on, bench), environ)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
        return
    for line in forecast_lines(found, shutil.get_terminal_size().columns):
        typer.echo(line)
