"""The functions behind `nanochat data preview` and `nanochat data check`."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from flows.artifacts_command import StoreOption
from nanochat_core.errors import DataError

if TYPE_CHECKING:
    from nanochat_core.data.conversation_files import Line
    from nanochat_core.data.conversation_preview import Piece, Preview

PREVIEW_EXAMPLES = (
    "nanochat data preview me.jsonl                 its first conversations",
    "nanochat data preview me.jsonl --line 120 -n 1 this one alone",
    "nanochat data preview me.jsonl --tokenizer tokenizer/4221b8f8",
    "nanochat data preview gsm8k --benchmarks data  a published set",
    "nanochat data preview identity                 what is made here",
    "",
    "A file holds one conversation a line: an object whose `messages` each have",
    "a `role` (system, user, assistant) and `content`.",
)
CHECK_EXAMPLES = (
    "nanochat data check me.jsonl                   is every line in order?",
    "nanochat data check me.jsonl --tokenizer demo  and how many fit the context",
)
MAX_PROBLEMS = 50
TRAINED_STYLES = ("black on green", "black on bright_green")
OTHER_STYLES = ("default", "dim")
SPECIAL_STYLE = "bold"
# Terminals act on these: what a file holds must only be shown.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

TokenizerOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="folder, artifact, or a model by any of its names"),
]
ContextOption = Annotated[
    int,
    typer.Option(
        metavar="TOKENS", min=0, show_default=False, help="default: that of the model, else 2048"
    ),
]
BenchmarksOption = Annotated[
    str,
    typer.Option(
        metavar="FOLDER", show_default=False, help="where the files of published sets are"
    ),
]


def preview(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|KIND", help="jsonl file or URL; or gsm8k, mmlu, smoltalk, identity ..."
        ),
    ],
    tokenizer: TokenizerOption = "latest",
    number: Annotated[int, typer.Option("-n", metavar="N", min=1, help="how many")] = 3,
    line: Annotated[int, typer.Option(metavar="N", min=1, help="the first one")] = 1,
    context: ContextOption = 0,
    benchmarks: BenchmarksOption = "",
    store: StoreOption = "default",
) -> None:
    """Show conversations as fine-tuning sees them: tokens, and which are trained on.

    On a terminal, what is trained on is green, and neighbouring tokens differ in shade. Elsewhere
    such stretches of text begin with + and the others with -.
    """
    from flows.conversation_sources import chosen, find_words, lines_of
    from nanochat_core.data.conversation_preview import preview_of

    words = find_words(tokenizer, store, _environ())
    lines = lines_of(source, benchmarks, words.facts)
    for each in chosen(lines, source, first=line, count=number):
        if each.conversation is None:
            raise DataError(f"{source}:{each.number}: {each.problem}")
        length = context or words.context
        shown = preview_of(words.tokenizer, each.conversation, length)
        typer.echo(f"{source}:{each.number}: {verdict(shown, length)}")
        _show(shown)
        typer.echo()


def check(
    source: Annotated[str, typer.Argument(metavar="FILE", help="jsonl file or URL")],
    tokenizer: Annotated[
        str,
        typer.Option(metavar="NAME", show_default=False, help="count tokens with this one, too"),
    ] = "",
    context: ContextOption = 0,
    store: StoreOption = "default",
) -> None:
    """Check every line of a file of conversations, and count what is in it.

    The exit code is 1 when a line is no conversation.
    """
    from flows.conversation_sources import find_words
    from nanochat_core.data.benchmark_files import OwnFile
    from nanochat_core.data.conversation_files import read_lines
    from nanochat_core.data.conversation_preview import preview_of

    words = find_words(tokenizer, store, _environ()) if tokenizer else None
    counts: Counter[str] = Counter()
    for line in _told_problems(source, read_lines(OwnFile.parse(source).place), counts):
        assert line.conversation is not None, "those with a problem were told"
        counts["conversations"] += 1
        counts["messages"] += len(line.conversation.messages)
        counts["with a system message"] += line.conversation.system is not None
        counts["without an answer to train on"] += len(line.conversation.turns) < 2
        if words is not None:
            shown = preview_of(words.tokenizer, line.conversation, context or words.context)
            counts["tokens"] += shown.num_tokens
            counts["tokens trained on"] += shown.num_trained
            name = f"longer than the context of {context or words.context}, left out"
            counts[name] += shown.fate == "too long"
    for name, count in counts.items():
        typer.echo(f"{count:>12,} {name}")
    if bad := counts["lines that are no conversation"]:
        raise DataError(f"{source}: {bad:,} of {bad + counts['conversations']:,} lines to mend")
    if not counts["conversations"]:
        raise DataError(f"{source} holds no conversation; expected one a line, as JSON")


def verdict(shown: "Preview", context: int) -> str:
    """How long a conversation is, and what fine-tuning does with it."""
    counted = f"{shown.num_tokens:,} tokens, {shown.num_trained:,} trained on"
    if shown.is_cut:
        counted += f", cut to {shown.num_tokens:,}"
    if shown.fate == "too long":
        return f"{counted}; longer than a context of {context:,}: left out"
    if shown.fate == "without targets":
        return f"{counted}; nothing to train on: left out"
    return f"{counted}; fits a context of {context:,}"


def plain_lines(shown: "Preview") -> Iterator[str]:
    """Stretches that are trained on and others, each line with its sign."""
    for is_trained, pieces in groupby(shown.pieces, key=lambda piece: piece.is_trained):
        text = "".join(printable(piece.text) for piece in pieces)
        for line in text.split("\n"):
            yield f"{'+' if is_trained else '-'} {line}"


def styled(pieces: "tuple[Piece, ...]") -> Iterator[tuple[str, str]]:
    """Every piece with its colours; neighbours of one kind differ in shade."""
    for number, piece in enumerate(pieces):
        shades = TRAINED_STYLES if piece.is_trained else OTHER_STYLES
        special = f"{SPECIAL_STYLE} " if piece.is_special else ""
        yield printable(piece.text), special + shades[number % 2]


def printable(text: str) -> str:
    """Text that a terminal only shows; line ends stay."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _show(shown: "Preview") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    if console.is_terminal and console.color_system and not console.no_color:
        console.print(Text.assemble(*styled(shown.pieces)))
        return
    for line in plain_lines(shown):
        typer.echo(line)


def _told_problems(source: str, lines: "Iterator[Line]", counts: Counter[str]) -> "Iterator[Line]":
    """The lines that are conversations; the others are said, the first of them one by one."""
    bad = "lines that are no conversation"
    for line in lines:
        if line.conversation is not None:
            yield line
            continue
        counts[bad] += 1
        if counts[bad] <= MAX_PROBLEMS:
            typer.echo(f"{source}:{line.number}: {printable(line.problem)}", err=True)
    if counts[bad] > MAX_PROBLEMS:
        typer.echo(f"and {counts[bad] - MAX_PROBLEMS:,} more", err=True)


def _environ() -> Mapping[str, str]:
    return os.environ  # noqa: TID251  an entry: read here, passed down as values
