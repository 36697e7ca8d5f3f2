"""`nanochat artifacts push, pull, alias and gc`; `flows.cli` registers them."""

import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from flows.artifacts_command import StoreOption
from nanochat_core.errors import ConfigError

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="alias, station/fingerprint or fingerprint")
]
LineageOption = Annotated[
    bool,
    typer.Option(
        "--with-lineage/--alone",
        help="with all that it was made from, so that everything works there; or it alone",
    ),
]
AliasesOption = Annotated[
    bool, typer.Option("--aliases", help="also the aliases that name what was copied")
]
ReplaceOption = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="where something else lies under the same fingerprint, let this be found instead",
    ),
]


def push(
    name: NameArgument,
    to: Annotated[str, typer.Argument(metavar="TO", help="folder or URL of the other store")],
    store: StoreOption = "default",
    with_lineage: LineageOption = True,
    aliases: AliasesOption = False,
    replace: ReplaceOption = False,
) -> None:
    """Copy an artifact, with its lineage, to another store.

    What is there already is skipped, and every byte that arrives is verified. After a stop, run
    the same command again.
    """
    from flows.carrying import carry
    from flows.looking import open_store

    source, target = open_store(store, _environ()), open_store(to, _environ())
    for line in carry(
        source, target, name, with_lineage=with_lineage, aliases=aliases, replace=replace
    ):
        typer.echo(line)


def pull(
    name: NameArgument,
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="folder or URL of the other store, only read")
    ],
    store: StoreOption = "default",
    with_lineage: LineageOption = True,
    aliases: AliasesOption = False,
    replace: ReplaceOption = False,
) -> None:
    """Copy an artifact, with its lineage, from another store.

    That one is only read. What is here already is skipped, and every byte that arrives is
    verified. After a stop, run the same command again.
    """
    from flows.carrying import carry
    from flows.looking import open_store

    opened, target = open_store(source, _environ()), open_store(store, _environ())
    for line in carry(
        opened, target, name, with_lineage=with_lineage, aliases=aliases, replace=replace
    ):
        typer.echo(line)


def alias(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)] = "",
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF", show_default=False, help="alias, station/fingerprint or fingerprint"
        ),
    ] = "",
    remove: Annotated[
        bool, typer.Option("--remove", help="let NAME stand for nothing; the artifact stays")
    ] = False,
    store: StoreOption = "default",
) -> None:
    """List the aliases, or set or remove one.

    NAME stands for the artifact REF from now on. What an alias names, and all that it was made
    from, is never removed by gc.
    """
    from flows.looking import alias_lines, open_store
    from flows.naming import move_alias, remove_alias

    if remove and (ref or not name):
        raise ConfigError(
            "--remove takes the name of one alias: nanochat artifacts alias x --remove"
        )
    if name and not ref and not remove:
        raise ConfigError(
            f"{name!r} should stand for which artifact? Give one of: nanochat artifacts ls"
        )
    opened = open_store(store, _environ())
    if not name:
        lines = alias_lines(opened)
    else:
        lines = [remove_alias(opened, name) if remove else move_alias(opened, name, ref)]
    for line in lines:
        typer.echo(line)


def gc(
    keep: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="keep this one with what it was made from; repeatable"),
    ] = [],  # noqa: B006
    keep_runs: Annotated[
        int, typer.Option(metavar="N", min=0, help="keep what the newest N runs made or found")
    ] = 10,
    older_than: Annotated[
        float,
        typer.Option(metavar="DAYS", min=0, help="keep what is younger, and what it was made from"),
    ] = 7.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what would be removed, and remove nothing")
    ] = False,
    while_busy: Annotated[
        bool,
        typer.Option(
            "--while-busy",
            help="remove artifacts though something is being made, which may have found them",
        ),
    ] = False,
    store: StoreOption = "default",
) -> None:
    """Remove what nobody needs; look with --dry-run first.

    It asks nothing. Kept are, each with all that it was made from: what an alias names, what the
    newest runs made or found, what is young, what --keep names, and the inputs of unfinished
    work. Removed are the other artifacts, damaged manifests that were made anew, what killed
    uploads left a day ago or longer, work that was interrupted as long ago as --older-than (a
    day at least), and copies on this machine that were not used for as long.
    """
    from flows.cleaning import Cleaning
    from flows.looking import open_store

    opened = open_store(store, _environ())
    cleaning = Cleaning(opened, keep_runs, older_than, tuple(keep), while_busy)
    for line in cleaning.told() if dry_run else cleaning.done():
        typer.echo(line)


def _environ() -> Mapping[str, str]:
    return os.environ  # noqa: TID251  an entry: read here, passed down as values


COMMANDS: tuple[tuple[str, Callable[..., Any], tuple[str, ...]], ...] = (
    (
        "push",
        push,
        (
            "nanochat artifacts push latest s3://bucket/nano --aliases",
            "nanochat artifacts push sft/3f2a91c0 /mnt/backup --alone",
        ),
    ),
    (
        "pull",
        pull,
        (
            "nanochat artifacts pull latest s3://bucket/nano --aliases",
            "nanochat artifacts pull tokens/77ab10fe /mnt/shared",
        ),
    ),
    (
        "alias",
        alias,
        (
            "nanochat artifacts alias                   all of them",
            "nanochat artifacts alias best sft/3f2a91c0",
            "nanochat artifacts alias best --remove",
        ),
    ),
    (
        "gc",
        gc,
        (
            "nanochat artifacts gc --dry-run",
            "nanochat artifacts gc --older-than 30 --keep-runs 3",
            "nanochat artifacts gc --keep sft/3f2a91c0 --keep rl/5b01",
        ),
    ),
)
"""Name, function and examples of each."""
