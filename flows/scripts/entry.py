"""The door of the scripts: `torchrun ... -m flows.scripts.base_train -- --depth=4`.

Each rank works out the same job, and becomes it; without torchrun there is one rank.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import typer

from flows.by_hand.commands import DOCS, SETTINGS, TABLES, Act, command, plan


def becoming(name: str) -> Act:
    """Become the job of a command in this very process."""

    def act(values: Mapping[str, Any]) -> None:
        from flows.by_hand.launching import become

        environ = os.environ  # noqa: TID251  torchrun speaks to its processes in this way
        ranks = int(environ["WORLD_SIZE"]) if "WORLD_SIZE" in environ else None
        become(plan(name, values, ranks), environ)

    return act


def main(name: str) -> NoReturn:
    """Entry point of the script that is called `name` in the table of commands."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings=SETTINGS)(command(TABLES[name][1], becoming(name), DOCS[name]))
    arguments = sys.argv[1:]
    # The `--` between torchrun's options and ours may or may not have been taken away.
    app(arguments[1:] if arguments[:1] == ["--"] else arguments)
    raise AssertionError("typer ends the process")
