"""The function behind `nanochat serve`; `flows.cli` registers it."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from flows.artifacts_command import StoreOption
from nanochat_core.errors import ConfigError

SERVER_MODULE = "nanochat_core.serving.app"
LATEST = "latest"


@dataclass(frozen=True)
class Door:
    """Where a server listens and what it takes; the fields are options of its command line."""

    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    replicas: str = "auto"
    rows: int = 32
    max_waiting: int = 64
    max_loaded: int = 2
    cors_origin: Sequence[str] = field(default=())
    exact: bool = False

    def options(self) -> list[str]:
        """As arguments."""
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port}; give 0 (a free one) to 65535")
        named = {name: value for name, value in vars(self).items() if name not in _OTHER_KINDS}
        given = [(f"--{name.replace('_', '-')}", str(value)) for name, value in named.items()]
        given += [("--cors-origin", origin) for origin in self.cors_origin]
        return [*(word for pair in given for word in pair), *(["--exact"] * self.exact)]


_OTHER_KINDS = ("cors_origin", "exact")


def serve(  # noqa: PLR0913  one parameter per option
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="what a request gets that names none: alias, station/fingerprint, tag as d4, or "
            "folder; default: latest. The others of the store are loaded when they are asked for",
        ),
    ] = "",
    alias: Annotated[
        str, typer.Option(metavar="NAME", show_default=False, help="the same as MODEL")
    ] = "",
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="0.0.0.0 lets other machines in; then set NANOCHAT_API_KEY, a key of your choice "
            "that every client has to send",
        ),
    ] = Door.host,
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="0 takes a free one")
    ] = Door.port,
    store: StoreOption = "default",
    device: Annotated[
        str, typer.Option(metavar="KIND", help="cuda, mps or cpu; auto takes the first there is")
    ] = Door.device,
    replicas: Annotated[
        str,
        typer.Option(metavar="N", help="processes for each model; auto: one for each GPU, else 1"),
    ] = Door.replicas,
    rows: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="replies that one replica computes at once; takes memory"
        ),
    ] = Door.rows,
    max_waiting: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="replies of a model that may wait; more are refused (429)"
        ),
    ] = Door.max_waiting,
    max_loaded: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="models in memory; the one unused for longest makes room"
        ),
    ] = Door.max_loaded,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="https://SITE", help="a site whose pages may ask this server; repeatable"
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="equal requests get equal replies, whatever else runs; slower"
        ),
    ] = False,
) -> None:
    """Serve models: a chat page for the browser, and the OpenAI API under /v1.

    Ctrl-C lets replies that run come to their end (10 seconds at most); a second one ends at once.
    """
    from flows.looking import open_store, resolve_model
    from nanochat_core.inference.by_hand import by_hand_base

    environ = os.environ  # noqa: TID251  an entry: read here, passed down as values
    if model and alias and model != alias:
        raise ConfigError(f"MODEL {model!r} and --alias {alias!r} are two; give one of them")
    name, opened, by_hand = (
        model or alias or LATEST,
        open_store(store, environ),
        by_hand_base(environ),
    )
    door = Door(
        host, port, device, replicas, rows, max_waiting, max_loaded, cors_origin or (), exact
    )
    command = server_command(name, opened.url, by_hand, door)
    # A model that is not there is said before anything starts.
    typer.echo(f"loading {name} from {resolve_model(opened, name, by_hand)[0]}")
    # The server takes over this process: terminal, Ctrl-C and exit code are all its own.
    os.execv(sys.executable, command)


def server_command(model: str, store_url: str, by_hand: Path, door: Door) -> list[str]:
    """The command line of a server for a store; credentials stay in the environment."""
    places = ("--store", store_url, "--by-hand", str(by_hand), "--model", model)
    return [sys.executable, "-m", SERVER_MODULE, *places, *door.options()]
