"""The functions behind `nanochat artifacts`; `flows.cli` registers them."""

import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from nanochat_core.errors import NanochatError

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="PLACE",
        show_default=False,
        help="folder or URL (s3://bucket/prefix) of the artifacts; default: NANOCHAT_STORE, else "
        "a folder of your user's cache",
    ),
]


def list_artifacts(
    station: Annotated[
        str, typer.Argument(metavar="STATION", show_default=False, help="of this station only")
    ] = "",
    store: StoreOption = "default",
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="the newest N only; 0 lists all")
    ] = 50,
) -> None:
    """List what is published, the newest last.

    With each its reference, size, date, names and key numbers.
    """
    from flows.looking import artifact_lines, open_store

    for line in artifact_lines(open_store(store, _environ()), station, limit):
        typer.echo(line)


def show_artifact(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="alias, station/fingerprint or fingerprint")
    ],
    store: StoreOption = "default",
    as_json: Annotated[bool, typer.Option("--json", help="the whole manifest as JSON")] = False,
) -> None:
    """Show what one artifact is, its files, and what it was made from, down to the shards."""
    from flows.lineage import lineage_lines
    from flows.looking import artifact_page, open_store

    opened = open_store(store, _environ())
    manifest = opened.manifest(opened.resolve(name))
    if as_json:
        typer.echo(manifest.model_dump_json(indent=1))
        return
    for line in (artifact_page(manifest), "", "lineage:", *lineage_lines(opened, manifest)):
        typer.echo(line)


def verify_artifacts(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", show_default=False, help="this one only; default: the whole store"
        ),
    ] = "",
    store: StoreOption = "default",
) -> None:
    """Hash every file again, and say what is damaged.

    The exit code is 1 when anything is that was not made anew since.
    """
    from flows.looking import open_store, verify_lines
    from nanochat_core.artifacts.newest import newest_manifests

    opened = open_store(store, _environ())
    lines, num_damaged = verify_lines(opened, name)
    for line in lines:
        typer.echo(line)
    if num_damaged:
        raise NanochatError(
            f"{num_damaged} damaged; run the line again: artifacts and aliases are made anew "
            "(the record of a past run is not; remove its file)"
        )
    if not newest_manifests(opened, limit=1):
        typer.echo(f"{opened.url} holds no artifact yet; make one with: nanochat run demo")
    else:
        typer.echo(
            "everything that counts is sound" if lines else "everything is as it was written"
        )


def _environ() -> Mapping[str, str]:
    return os.environ  # noqa: TID251  an entry: read here, passed down as values


COMMANDS: tuple[tuple[str, Callable[..., Any], tuple[str, ...]], ...] = (
    (
        "ls",
        list_artifacts,
        (
            "nanochat artifacts ls",
            "nanochat artifacts ls sft --limit 5 --store s3://bucket/nano",
        ),
    ),
    (
        "show",
        show_artifact,
        ("nanochat artifacts show latest", "nanochat artifacts show sft/3f2a91c0 --json"),
    ),
    (
        "verify",
        verify_artifacts,
        ("nanochat artifacts verify", "nanochat artifacts verify latest"),
    ),
)
"""Name, function and examples of each."""
