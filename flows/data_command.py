"""The commands under `nanochat data`; `flows.cli` hangs them there."""

from collections.abc import Callable
from typing import Any

import typer

from flows.data_fetch import EPILOG_LINES as FETCH_EXAMPLES
from flows.data_fetch import fetch
from flows.data_identity import EPILOG_LINES as IDENTITY_EXAMPLES
from flows.data_identity import identity
from flows.data_preview import CHECK_EXAMPLES, PREVIEW_EXAMPLES, check, preview

Command = Callable[..., Any]
COMMANDS: tuple[tuple[str, Command, tuple[str, ...]], ...] = (
    ("preview", preview, PREVIEW_EXAMPLES),
    ("check", check, CHECK_EXAMPLES),
    ("identity", identity, IDENTITY_EXAMPLES),
    ("fetch", fetch, FETCH_EXAMPLES),
)
"""Name, function and examples of each."""


def data_app(told: Callable[[Command], Command], examples: Callable[..., str]) -> typer.Typer:
    """`nanochat data`; how errors are told and examples are set is given by `flows.cli`."""
    app = typer.Typer(
        help="Look at data, make conversations, and fetch the sets that benchmarks need.",
        epilog=examples(
            "nanochat data check talks.jsonl       is every conversation in order?",
            "nanochat data preview talks.jsonl     its tokens, and which are trained",
            "nanochat data identity --name Ada     conversations about the model itself",
            "nanochat data fetch gsm8k mmlu        the files that --benchmarks takes",
        ),
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for name, command, lines in COMMANDS:
        app.command(name, epilog=examples(*lines))(told(command))
    return app
