"""The command `nanochat`. Heavy imports wait until a command needs them: `--help` is instant."""

import functools
import os
import shlex
import signal
import sys
from collections.abc import Callable, MutableMapping
from types import FrameType
from typing import Annotated, Any, NoReturn, ParamSpec

import typer

from nanochat_core.errors import ConfigError, NanochatError

EXIT_ERROR, EXIT_CONFIG, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143
STOPPED = (
    "Stopped. What was finished is kept, and a stage under way continues from its last "
    "checkpoint: run the same command again."
)

app = typer.Typer(
    help="Text to a chat model that answers, cached and resumable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
artifacts_app = typer.Typer(help="Look into the artifact store.", no_args_is_help=True)
app.add_typer(artifacts_app, name="artifacts")

StoreOption = Annotated[
    str, typer.Option("--store", help="folder or URL of the artifacts; default: NANOCHAT_STORE")
]
Arguments = ParamSpec("Arguments")


class _Terminated(BaseException):
    """SIGTERM, as an exception that ends this process in order."""


def _raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def told(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Turn our errors into one message and an exit code, without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except NanochatError as error:
            code = EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_ERROR
            typer.echo(f"error: {error}", err=True)
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
            typer.echo(STOPPED, err=True)
        except _Terminated:
            code = EXIT_TERMINATED
            typer.echo(STOPPED, err=True)
        else:
            return
        raise typer.Exit(code)

    return wrapped


def _environ() -> MutableMapping[str, str]:
    return os.environ  # noqa: TID251  an entry: read here, passed down as values


@app.command()
@told
def run(  # noqa: PLR0913  one parameter per option
    preset: Annotated[str, typer.Argument(help="size of the run: tiny, demo")] = "demo",
    depth: Annotated[str, typer.Option(help="layers of the model: the one dial")] = "preset",
    store: StoreOption = "default",
    source: Annotated[
        list[str], typer.Option(help="your own text: file, folder, glob or URL; repeatable")
    ] = [],  # noqa: B006
    assignments: Annotated[
        list[str], typer.Option("--set", help="STATION.field=value; repeatable")
    ] = [],  # noqa: B006
    start_from: Annotated[str, typer.Option(help="make this station and all after it")] = "none",
    stop_after: Annotated[str, typer.Option(help="end after this station")] = "end",
    force: Annotated[list[str], typer.Option(help="make this station again; repeatable")] = [],  # noqa: B006
    wait: Annotated[bool, typer.Option("--wait", help="wait for another run of the same")] = False,
) -> None:
    """Run the line: shards, tokenizer, tokens, pretrain, base_eval, sft, chat_eval_sft, release."""
    from flows.overrides import parse_assignment
    from flows.parameters import parse_parameters

    parameters = {
        "preset": preset,
        "depth": depth,
        "store": store,
        "source": source,
        "overrides": dict(parse_assignment(text) for text in assignments),
        "start_from": start_from,
        "stop_after": stop_after,
        "force": force,
        "wait": wait,
    }
    _run_line(parse_parameters(parameters))


def _run_line(parameters: Any) -> None:
    signal.signal(signal.SIGTERM, _raise_terminated)
    environ = _environ()
    from flows.closing import closing_lines
    from flows.local_server import DEFAULTS, LocalServer, check_reachable, has_own_server
    from flows.parameters import check
    from nanochat_core.artifacts.store import ArtifactStore

    resolved = check(parameters, environ)
    store = ArtifactStore(resolved.store_url)
    store.check_writable()
    typer.echo(f"{parameters.preset}: artifacts in {store.url}")
    for name, value in DEFAULTS.items():
        environ.setdefault(name, value)
    check_reachable(environ)
    server = None if has_own_server(environ) else LocalServer(environ)
    from flows.running import run_watched

    records = run_watched(parameters, server, sys.stdout)
    option = "" if parameters.store == "default" else f" --store {shlex.quote(parameters.store)}"
    for line in closing_lines(store, records, f"nanochat chat{option}"):
        typer.echo(line)


@app.command()
@told
def chat(
    model: Annotated[str, typer.Argument(help="alias, or station/fingerprint")] = "latest",
    prompt: Annotated[str, typer.Option("-p", help="one question, one answer, no dialogue")] = "",
    store: StoreOption = "default",
) -> None:
    """Talk to a model that was made here."""
    from flows.looking import open_store, resolve_model

    model_folder, tokenizer_folder = resolve_model(open_store(store, _environ()), model)
    command = [sys.executable, "-m", "nanochat_core.jobs.chat"]
    command += ["--model", str(model_folder), "--tokenizer", str(tokenizer_folder)]
    command += ["-p", prompt] if prompt else []
    # The conversation takes over this process: terminal, Ctrl-C and exit code are all its own.
    os.execv(sys.executable, command)


@artifacts_app.command("ls")
@told
def list_artifacts(
    station: Annotated[str, typer.Argument(help="of this station only")] = "",
    store: StoreOption = "default",
) -> None:
    """List what is published: reference, size, date, names."""
    from flows.looking import artifact_lines, open_store

    for line in artifact_lines(open_store(store, _environ()), station):
        typer.echo(line)


@artifacts_app.command("show")
@told
def show_artifact(
    name: Annotated[str, typer.Argument(help="alias, station/fingerprint or fingerprint")],
    store: StoreOption = "default",
) -> None:
    """Show all that is recorded of one artifact, as JSON."""
    from flows.looking import open_store

    opened = open_store(store, _environ())
    typer.echo(opened.manifest(opened.resolve(name)).model_dump_json(indent=1))


@artifacts_app.command("verify")
@told
def verify_artifacts(
    name: Annotated[str, typer.Argument(help="this one only; default: the whole store")] = "",
    store: StoreOption = "default",
) -> None:
    """Hash every file again; the exit code is 1 when anything is damaged."""
    from flows.looking import open_store, verify_lines

    damages = verify_lines(open_store(store, _environ()), name)
    for line in damages:
        typer.echo(line)
    if damages:
        raise NanochatError(
            f"{len(damages)} damaged; run the line again: what is damaged is made anew"
        )
    typer.echo("everything is as it was written")


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
