"""How commands that run flows begin: a stop that ends them in order, and a server to talk to."""

import signal
from collections.abc import MutableMapping
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import typer

from nanochat_core.errors import ConfigError

if TYPE_CHECKING:
    from flows.local_server import LocalServer


class Terminated(BaseException):
    """SIGTERM, as an exception that ends this process in order."""


def _raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def stop_in_order() -> None:
    """Let SIGTERM raise Terminated from now on."""
    signal.signal(signal.SIGTERM, _raise_terminated)


def start_server(environ: MutableMapping[str, str], *, needs_workers: bool) -> "LocalServer | None":
    """A server for this command, on its way up; None where the user has one, which answers."""
    from flows.local_server import DEFAULTS, LocalServer, check_reachable, has_own_server

    for name, value in DEFAULTS.items():
        environ.setdefault(name, value)
    check_reachable(environ)
    if needs_workers and not has_own_server(environ):
        raise ConfigError(
            "--pool asks workers of a Prefect server, and none is named; set PREFECT_API_URL"
        )
    server = None if has_own_server(environ) else LocalServer(environ)
    typer.echo("starting Prefect, which takes some seconds")
    return server
