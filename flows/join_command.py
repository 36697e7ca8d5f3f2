"""The function behind `nanochat join`; `flows.cli` registers it. It ends with an exit code."""

import logging
import signal
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from flows.by_hand.commands import ended, raise_terminated

EPILOG_LINES = (
    "nanochat join RUN_FOLDER/job.json                         the job of one run",
    "nanochat join /shared/by-hand --rdzv-id $SLURM_JOB_ID     whatever job has this id",
    "nanochat join /shared/store --rdzv-id night --wait-minutes 60",
)


def join(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PLACE",
            help="job.json of a job, which need not be there yet; or the store or folder of runs "
            "by hand that it will be in",
        ),
    ],
    rdzv_id: Annotated[
        str,
        typer.Option(
            metavar="ID", show_default=False, help="jobs of this id only, as the first machine got"
        ),
    ] = "",
    wait_minutes: Annotated[
        float, typer.Option(metavar="N", help="for the job, and for another start of a lost one")
    ] = 10.0,
) -> None:
    """Be one more machine of a job that runs on several.

    The first machine trains with --nnodes, --rdzv-endpoint and --rdzv-id; this command runs on
    each of the others, and all of them see one file system at the same path.
    """
    values = {"place": place, "rdzv_id": rdzv_id, "wait_seconds": 60.0 * wait_minutes}
    raise typer.Exit(ended(_join, values))


class _Terminal:
    """What the joining machine says; how far the job is, the first one shows."""

    def progress(self, done: int, total: int, unit: str, message: str) -> None:
        """Nothing: ranks of this machine write no progress."""

    def log(self, level: int, line: str) -> None:
        """A line at once."""
        typer.echo(line, err=level >= logging.WARNING)


def _join(values: Mapping[str, Any]) -> None:
    signal.signal(signal.SIGTERM, raise_terminated)
    from pathlib import Path

    from tasks.joining import Joining

    place = Path(values["place"]).expanduser()
    wait_seconds = values["wait_seconds"]
    Joining(place, values["rdzv_id"], wait_seconds=wait_seconds, report=_Terminal()).run()
