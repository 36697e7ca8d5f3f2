"""The function behind `nanochat chat`; `flows.cli` registers it."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.artifacts_command import StoreOption
from nanochat_core.errors import ConfigError
from nanochat_core.jobs.chat_settings import KNOBS, ChatSettings, read_number

CHAT_MODULE = "nanochat_core.jobs.chat"
EPILOG_LINES = (
    "nanochat chat                        a conversation with the newest model",
    "nanochat chat sft/3f2a91c0           any model of: nanochat artifacts ls",
    'nanochat chat -p "Who are you?"      one question, one answer',
    'nanochat chat -p "Sum up:" < a.txt   the question, then the text of the file',
    "echo 2+2 | nanochat chat --json      reply, tool calls and speed as JSON",
    "nanochat chat --temperature 0        always the likeliest token",
    "",
    "In a conversation /help lists the commands: another model, other settings,",
    'undo, save. A line that ends with \\ goes on in the next one, and """ opens',
    "and closes a block. Ctrl-C stops a reply; Ctrl-D ends the conversation.",
)
DEFAULTS = ChatSettings()


def chat(  # noqa: PLR0913  one parameter per option
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="alias, station/fingerprint, tag as d4, or folder"),
    ] = "latest",
    prompt: Annotated[
        str | None,
        typer.Option(
            "-p", metavar="TEXT", help="one question, one answer; a piped text comes after it"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="the one answer as one JSON object")
    ] = False,
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="stands before the conversation")
    ] = "",
    temperature: Annotated[
        float, typer.Option(metavar="X", help="0 always takes the likeliest token")
    ] = DEFAULTS.temperature,
    top_k: Annotated[
        int, typer.Option(metavar="N", help="sample from the N likeliest tokens; 0: from all")
    ] = DEFAULTS.top_k,
    top_p: Annotated[
        float, typer.Option(metavar="X", help="and from the likeliest that have this share")
    ] = DEFAULTS.top_p,
    max_tokens: Annotated[int, typer.Option(metavar="N", help="of a reply")] = DEFAULTS.max_tokens,
    seed: Annotated[
        int, typer.Option(metavar="N", help="equal seeds give equal replies")
    ] = DEFAULTS.seed,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="ends a reply where it would say it; repeatable"),
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cuda, mps or cpu")] = "auto",
    no_history: Annotated[
        bool, typer.Option("--no-history", help="keep nothing of what is typed")
    ] = False,
    store: StoreOption = "default",
) -> None:
    """Talk to a model that was made here, or ask it one question."""
    if prompt is not None and not prompt.strip():
        raise ConfigError('-p got no text; give a question, as in -p "Who are you?"')
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    # Joined by =, since a text may start with a dash.
    options = [f"--device={device}", *_numbers(given), *(f"--stop={text}" for text in stop or ())]
    options += [] if prompt is None else [f"--prompt={prompt}"]
    options += [f"--system={system}"] if system else []
    options += ["--json"] if as_json else []
    options += ["--no-history"] if no_history else []
    command = [*(sys.executable, "-m", CHAT_MODULE), *_place(model, store)]
    # The conversation takes over this process: terminal, Ctrl-C and exit code are all its own.
    os.execv(sys.executable, [*command, *options])


def _numbers(given: dict[str, float]) -> list[str]:
    """The settings that are not the defaults, checked before a model is looked for."""
    words = []
    for name in KNOBS:
        value = read_number(name, given[name])
        if value != getattr(DEFAULTS, name):
            words.append(f"--{name.replace('_', '-')}={value}")
    return words


def _place(model: str, store: str) -> list[str]:
    """Where the model is, what it is called, and where `/model` looks for others."""
    from flows.looking import open_store, resolve_model
    from nanochat_core.inference.by_hand import by_hand_base
    from nanochat_core.inference.finding import CHAT_STATIONS

    environ = os.environ  # noqa: TID251  an entry: read here, passed down as values
    opened, by_hand = open_store(store, environ), by_hand_base(environ)
    folder, tokenizer = resolve_model(opened, model, by_hand)
    alias = opened.aliases().get(model)
    ref = alias.short if alias and alias.station in CHAT_STATIONS else ""
    is_folder = alias is None and Path(model).expanduser().is_dir()
    return [
        *(f"--model={folder}", f"--tokenizer={tokenizer}"),
        f"--name={Path(model).expanduser().absolute().name if is_folder else model}",
        *(f"--ref={ref}", f"--store={opened.url}", f"--by-hand={by_hand}"),
    ]
