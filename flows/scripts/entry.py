"""The door of the scripts: `torchrun ... -m flows.scripts.base_train -- --depth=4`.

Each rank works out the same job, and becomes it; without torchrun there is one rank.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import typer

from flows.by_hand.commands import DOCS, SETTINGS, TABLES, Act, command, plan
from nanochat_core.errors import ConfigError


def becoming(name: str) -> Act:
    """Become the job of a command in this very process."""

    def act(values: Mapping[str, Any]) -> None:
        from flows.by_hand.launching import become

        environ = os.environ  # noqa: TID251  torchrun speaks to its processes in this way
        become(plan(name, values, ranks_here(environ)), environ)

    return act


def ranks_here(environ: Mapping[str, str]) -> int | None:
    """How many processes torchrun has started; None without it, ConfigError on several machines."""
    if "WORLD_SIZE" not in environ:
        return None
    all_ranks = int(environ["WORLD_SIZE"])
    here = int(environ.get("LOCAL_WORLD_SIZE", all_ranks))
    if here != all_ranks:
        raise ConfigError(
            f"torchrun has started {all_ranks} processes, {here} of them on this machine; a "
            "script is for one machine: use torchrun --standalone, or nanochat train --nnodes"
        )
    return all_ranks


def main(name: str) -> NoReturn:
    """Entry point of the script that is called `name` in the table of commands."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings=SETTINGS)(command(TABLES[name][1], becoming(name), DOCS[name]))
    arguments = sys.argv[1:]
    # The `--` between torchrun's options and ours may or may not have been taken away.
    app(arguments[1:] if arguments[:1] == ["--"] else arguments)
    raise AssertionError("typer ends the process")
