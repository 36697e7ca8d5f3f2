"""Markdown that text from a model cannot break."""

from collections.abc import Sequence

from nanochat_core.conversation.markdown import escape

Lines = list[str]

NOTHING = "-"
MAX_CHARACTERS = 400
"""Of one text in a table; the artifact that is named beside it has all of it."""


def shortened(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Text cut to `limit` characters, with an ellipsis where something is missing."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def quoted(text: str) -> str:
    """Text of a model as a table cell; an empty one is said to be empty."""
    shown = escape(shortened(text.strip()))
    return shown or "*(nothing)*"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    """A table whose cells are Markdown already; a title that ends in ':' is right-aligned.

    Empty without rows.
    """
    if not rows:
        return []
    assert all(len(row) == len(titles) for row in rows), "a row of another width than its table"
    rule = "".join(" ---: |" if title.endswith(":") else " --- |" for title in titles)
    head = " | ".join(title.removesuffix(":") for title in titles)
    return [f"| {head} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]


def section(title: str, *blocks: Sequence[str]) -> Lines:
    """A heading and blocks of lines with an empty line between; empty when every block is."""
    filled = [block for block in blocks if block]
    if not filled:
        return []
    lines = [f"## {title}"]
    for block in filled:
        lines += ["", *block]
    return [*lines, ""]
