"""The function behind `nanochat serve`; `flows.cli` registers it."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from nanochat_core.errors import ConfigError

SERVER_MODULE = "nanochat_core.serving.app"


def serve(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="alias, station/fingerprint, tag as d4, or folder"),
    ] = "latest",
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="0.0.0.0 lets other machines in, without a key")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", help="0 takes a free one")] = 8000,
    store: Annotated[
        str,
        typer.Option(
            "--store",
            metavar="PLACE",
            show_default=False,
            help="folder or URL (s3://bucket/prefix) of the artifacts; default: NANOCHAT_STORE, "
            "else a folder of your user's cache",
        ),
    ] = "default",
) -> None:
    """Serve a model: a chat page for the browser, and the OpenAI API under /v1."""
    from flows.looking import open_store, resolve_model
    from nanochat_core.inference.by_hand import by_hand_base

    environ = os.environ  # noqa: TID251  an entry: read here, passed down as values
    opened = open_store(store, environ)
    found = resolve_model(opened, model, by_hand_base(environ))
    typer.echo(f"loading {model} from {found[0]}")
    command = server_command(found, served_name(model), host=host, port=port)
    # The server takes over this process: terminal, Ctrl-C and exit code are all its own.
    os.execv(sys.executable, command)


def served_name(model: str) -> str:
    """What clients see a model called: as it was asked for, but no path of this machine."""
    return Path(model).expanduser().name if Path(model).expanduser().is_dir() else model


def server_command(
    folders: tuple[Path, Path], name: str, *, host: str, port: int, device: str = "auto"
) -> list[str]:
    """The command line of a server for the folders of a model and of its tokenizer."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port={port}; give 0 (a free one) to 65535")
    model_folder, tokenizer_folder = folders
    return [
        *(sys.executable, "-m", SERVER_MODULE),
        *("--model", str(model_folder), "--tokenizer", str(tokenizer_folder)),
        *("--name", name, "--host", host, "--port", str(port), "--device", device),
    ]
