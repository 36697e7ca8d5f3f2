"""Text of people and of models inside Markdown, which it cannot break."""

import re

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def printable(text: str) -> str:
    """Text on one line, without control characters, on which no reader agrees."""
    kept = "".join(char for char in text if char.isprintable() or char.isspace())
    return " ".join(kept.split())


def escape(text: str) -> str:
    """Text as it is, for a cell or the inside of a line: nothing in it is markup, nor HTML.

    Line breaks are shown as ⏎. Control characters are left out.
    """
    line = " ⏎ ".join(filter(None, map(printable, text.splitlines())))
    line = "".join(_ENTITIES.get(char, char) for char in line)
    return re.sub(r"([\\`*_\[\]#|~$:@])", r"\\\1", line)
