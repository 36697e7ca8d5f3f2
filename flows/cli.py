"""The command `nanochat`. Heavy imports wait until a command needs them: `--help` is instant."""

import difflib
import functools
import os
import shlex
import sys
from collections.abc import Callable, MutableMapping
from typing import Annotated, Any, ParamSpec

import typer

from flows.artifacts_command import COMMANDS as ARTIFACT_COMMANDS
from flows.bootstrap_command import EPILOG_LINES as BOOTSTRAP_EXAMPLES
from flows.bootstrap_command import bootstrap
from flows.by_hand.commands import eval_app, train_app
from flows.chat_command import EPILOG_LINES as CHAT_EXAMPLES
from flows.chat_command import chat
from flows.comparing.command import EPILOG_LINES as COMPARE_EXAMPLES
from flows.comparing.command import compare
from flows.data_command import data_app
from flows.doctor_command import EPILOG_LINES as DOCTOR_EXAMPLES
from flows.doctor_command import doctor
from flows.exporting.command import EPILOG_LINES as EXPORT_EXAMPLES
from flows.exporting.command import export
from flows.join_command import EPILOG_LINES as JOIN_EXAMPLES
from flows.join_command import join
from flows.plan_command import EPILOG_LINES as PLAN_EXAMPLES
from flows.plan_command import plan
from flows.run_options import takes_run_options
from flows.serve_command import serve
from flows.starting import Terminated, start_server, stop_in_order
from flows.store_commands import COMMANDS as STORE_COMMANDS
from flows.sweeps.commands import COMMANDS as SWEEPS
from flows.verify_resume_command import EPILOG_LINES as VERIFY_EXAMPLES
from flows.verify_resume_command import verify_resume
from flows.why_command import COMMANDS as WHY_COMMANDS
from nanochat_core.errors import ConfigError, NanochatError, UnknownNameError
from tasks.process_environment import process_environment

EXIT_ERROR, EXIT_CONFIG, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143
STOPPED = (
    "Stopped. What was finished is kept, and a stage under way continues from its last "
    "checkpoint: run the same command again (a forced one that replaces nothing starts again)."
)


def examples(*lines: str) -> str:
    """The end of a help text; after backspace and newline, lines stay as they are."""
    return "\n  ".join(("\b\nExamples:", *lines))


ALIKE = 0.6
"""How near a misspelt word is to what was meant, as difflib measures it."""
BENCHMARKS = ("train", "infer", "serve", "tokens", "core", "chat-eval")


class _Nanochat(typer.core.TyperGroup):
    """Knows commands of two words, as in `nanochat run sweep`, beside those of one."""

    def resolve_command(self, context: Any, arguments: list[str]) -> tuple[Any, Any, list[str]]:
        """Two words if they are a command together, else the first."""
        both = " ".join(arguments[:2]).replace("_", "-")
        if both in self.commands:
            return both, self.commands[both], arguments[2:]
        if likely := self._misspelt(both):
            context.fail(f"there is no command {both!r}; did you mean: nanochat {likely}")
        return super().resolve_command(context, arguments)

    def _misspelt(self, both: str) -> str:
        """The command of two words that is nearest to these, if no preset is nearer; or ''."""
        first, _, second = both.partition(" ")
        commands = [word for name in self.commands for word in _after(first, name)]
        if second.startswith("-") or not difflib.get_close_matches(second, commands, cutoff=ALIKE):
            return ""
        from flows.presets import PRESETS

        (nearest,) = difflib.get_close_matches(second, [*commands, *PRESETS], 1, ALIKE)
        return f"{first} {nearest}" if nearest in commands else ""


def _after(first: str, name: str) -> list[str]:
    """The second word of a command whose first one this is."""
    before, _, word = name.partition(" ")
    return [word] if word and before == first else []


app = typer.Typer(
    cls=_Nanochat,
    help="Text to a chat model that answers, cached and resumable.",
    epilog=examples(
        "nanochat plan demo         what a run would take, and what is there already",
        "nanochat run demo          make a model, in minutes on two CPU cores",
        "nanochat chat              talk to it",
        "nanochat serve             a chat page, and the OpenAI API",
        "nanochat artifacts ls      see what was made on the way",
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
artifacts_app = typer.Typer(
    help="Look into the artifact store, tidy it, and copy between stores.",
    epilog=examples(
        "nanochat artifacts ls sft       the chat models that were made",
        "nanochat artifacts show latest  everything that is recorded of one",
        "nanochat artifacts why sft      why the next run would make it, or would not",
        "nanochat artifacts diff last~1 last             where two runs part",
        "nanochat artifacts push latest s3://bucket/nano copy it with its lineage",
        "nanochat artifacts gc --dry-run what could be removed, and why",
        "nanochat artifacts verify       hash every file again",
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(artifacts_app, name="artifacts")
app.add_typer(train_app, name="train")
app.add_typer(eval_app, name="eval")

Arguments = ParamSpec("Arguments")


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
        except Terminated:
            code = EXIT_TERMINATED
            typer.echo(STOPPED, err=True)
        else:
            return
        raise typer.Exit(code)

    return wrapped


def _environ() -> MutableMapping[str, str]:
    return os.environ  # noqa: TID251  an entry: read here, passed down as values


@app.command(
    epilog=examples(
        "nanochat run demo                       the text of this machine",
        "nanochat run demo --source book.txt     yours: txt, md, jsonl, parquet, .gz",
        "nanochat run demo --depth 4             a deeper model",
        "nanochat run demo --set sft.epochs=2    only sft and what follows run",
        "nanochat run demo --stop-after tokens   the data only",
        "nanochat run demo --force sft           make this station again",
        "",
        "After any stop, run the same command again: what is finished is found in",
        "the store, the rest continues. An unknown field after --set lists all.",
    )
)
@told
@takes_run_options
def run(parameters: Any) -> None:
    """Make a chat model of text.

    The stations: shards, tokenizer, tokens, benchmarks, pretrain, base_eval, sft, chat_eval_sft,
    rl, chat_eval_rl, report, release. That of benchmarks is there only if --benchmarks is given.

    Several runs and one table of them: nanochat run miniseries, scaling-laws, sweep (each has a
    --help of its own).
    """
    _run_line(parameters)


for _name, _command, _lines in SWEEPS:
    app.command(f"run {_name}", epilog=examples(*_lines))(told(_command))


def _run_line(parameters: Any) -> None:
    stop_in_order()
    environ = _environ()
    from flows.closing import closing_lines
    from flows.parameters import check
    from nanochat_core.artifacts.store import ArtifactStore

    resolved = check(parameters, environ)
    store = ArtifactStore(resolved.store_url)
    store.check_writable()
    typer.echo(f"{parameters.preset}: artifacts in {store.url}")
    for warning in resolved.warnings:
        typer.echo(f"note: {warning}", err=True)
    server = start_server(environ, needs_workers=bool(resolved.pools))
    from flows.running import run_watched

    view = run_watched(parameters, resolved.stations, server, sys.stdout)
    chat_command = _chat_command(parameters.store)
    for line in [*view.conclusions, *closing_lines(store, view.records, chat_command)]:
        typer.echo(line)


def _chat_command(store: str) -> str:
    """How to talk to what was made; '' for a store that ends with this process."""
    if store.startswith("memory:"):
        return ""
    return "nanochat chat" + ("" if store == "default" else f" --store {shlex.quote(store)}")


app.command(epilog=examples(*CHAT_EXAMPLES))(told(chat))

app.command(
    epilog=examples(
        "nanochat serve                    the newest model on http://127.0.0.1:8000",
        "nanochat serve sft/3f2a91c0       any model of: nanochat artifacts ls",
        "nanochat serve --host 0.0.0.0     for other machines too; set NANOCHAT_API_KEY",
    )
)(told(serve))


app.add_typer(data_app(told, examples), name="data")
app.command(epilog=examples(*PLAN_EXAMPLES))(told(plan))
app.command(epilog=examples(*COMPARE_EXAMPLES))(told(compare))
app.command(epilog=examples(*EXPORT_EXAMPLES))(told(export))
app.command(epilog=examples(*BOOTSTRAP_EXAMPLES))(told(bootstrap))
app.command(epilog=examples(*DOCTOR_EXAMPLES))(told(doctor))
app.command(epilog=examples(*JOIN_EXAMPLES))(join)
app.command("verify-resume", epilog=examples(*VERIFY_EXAMPLES))(told(verify_resume))


@app.command(
    # What follows the name of a benchmark is its own, --help too.
    context_settings={"allow_extra_args": True, "allow_interspersed_args": False},
    epilog=examples(
        "nanochat bench train              training steps per second",
        "nanochat bench infer              tokens per second of the engine",
        "nanochat bench serve --clients 64 the same over HTTP, and how long clients wait",
        "nanochat bench tokens             megabytes of text a second, by one process and two",
        "nanochat bench core               CORE's questions, against a padded batch for each",
        "nanochat bench chat-eval          replies of a benchmark, many at once and one by one",
    ),
)
@told
def bench(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="one of those below; nanochat bench train --help lists options"
        ),
    ],
) -> None:
    """Measure this machine: one line of JSON."""
    if what not in BENCHMARKS:
        raise UnknownNameError(f"there is no benchmark {what!r}; there is {', '.join(BENCHMARKS)}")
    module = f"nanochat_core.bench.{what.replace('-', '_')}"
    command = [sys.executable, "-m", module, *context.args]
    # As jobs are started, else it would measure something else.
    os.execve(sys.executable, command, process_environment(_environ()))


for _name, _command, _lines in (*ARTIFACT_COMMANDS, *WHY_COMMANDS, *STORE_COMMANDS):
    artifacts_app.command(_name, epilog=examples(*_lines))(told(_command))


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
