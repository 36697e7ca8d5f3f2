"""What a chat writes: replies as they come, notes and states, with nothing that acts on a terminal.

What a model says, and what a file is called, may hold control characters; on a terminal they are
shown and do nothing.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TextIO

from nanochat_core.conversation.types import PartKind
from nanochat_core.jobs.chat_dialogue import Answer

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f"  # C0 without tab and newline, and DEL: shown as ^[
    "\x80-\x9f"  # C1: terminals may take U+009B for ESC [
    "\u202a-\u202e\u2066-\u2069]"  # turn the order of what follows around
)
_COLOURS = {"tool": "36", "note": "2", "error": "31"}


def harmless(text: str) -> str:
    """The text as a terminal may show it: control characters in caret notation or as U+FFFD."""
    return _UNSAFE.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"^{chr(code ^ 0x40)}" if code < 0x80 else "\ufffd"


def takes_colours(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether colours are wanted there: on a terminal that has them, without NO_COLOR."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class Screen:
    """Where a chat is written; plain and unchanged text when that is no terminal."""

    def __init__(self, out: TextIO, aside: TextIO, *, has_colours: bool = False) -> None:
        self.out, self.aside, self.has_colours = out, aside, has_colours
        self.is_terminal = out.isatty()
        self._kind: PartKind = "text"
        self._is_line_open = False

    def write(self, text: str, style: str = "") -> None:
        """Write at once, in the style of `tool`, `note` or `error`."""
        if self.is_terminal:
            text = harmless(text)
        if text:
            self._is_line_open = not text.endswith("\n")
        if style and self.has_colours and text:
            text = f"\x1b[{_COLOURS[style]}m{text}\x1b[0m"
        self.out.write(text)
        self.out.flush()

    def note(self, text: str, style: str = "note") -> None:
        """A line of our own, between messages; beside them where replies go to a file."""
        if not self.is_terminal:
            self.aside.write(harmless(text) + "\n")
            self.aside.flush()
            return
        self.close_line()
        self.write(text, style)
        self.write("\n")

    def hear(self, kind: PartKind, text: str) -> None:
        """A stretch of a reply; a tool call reads `[12+30 = 42]`."""
        self._turn_to(kind)
        self.write(text, "" if kind == "text" else "tool")

    def end_reply(self) -> None:
        """Close what is open; the next reply begins on its own line."""
        self._turn_to("text")
        self.write("\n")

    def close_line(self) -> None:
        """Begin a new line, unless there is one."""
        if self._is_line_open:
            self.write("\n")

    def _turn_to(self, kind: PartKind) -> None:
        brackets = between(self._kind, kind)
        self._kind = kind
        if brackets:
            self.write(brackets, "tool")


def between(kind: PartKind, following: PartKind) -> str:
    """What stands between two parts of a reply: the brackets around a tool call."""
    if kind == following:
        return ""
    closing = "]" if kind != "text" and (kind, following) != ("python", "python_output") else ""
    opening = {"text": "", "python": "[", "python_output": " = " if kind == "python" else "[= "}
    return closing + opening[following]


def status(answer: Answer) -> str:
    """The line after a reply: how long it was and how fast, and what cut it."""
    speed = answer.tokens_per_second
    pace = f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"
    words = [f"{answer.num_tokens:,} tokens", f"{pace} tokens/s"]
    if answer.settings.temperature > 0:
        words.append(f"seed {answer.settings.seed}")
    if answer.finish_reason == "stopped":
        words.append("stopped" if answer.num_tokens else "stopped before it said anything")
    elif answer.finish_reason == "length":
        words.append(f"cut: max_tokens is {answer.settings.max_tokens:,}")
    elif not answer.num_tokens:
        words.append("the model had nothing to say")
    return f"({', '.join(words)})"


@contextmanager
def waiting(out: TextIO, text: str) -> Iterator[None]:
    """Show what is waited for, on a terminal only; it is gone afterwards."""
    if not out.isatty():
        yield
        return
    text = harmless(text)
    out.write(text)
    out.flush()
    try:
        yield
    finally:
        # Back to the margin and blanks: understood by terminals that know no escape sequence.
        out.write("\r" + " " * len(text) + "\r")
        out.flush()


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C raises nothing, and what is yielded tells whether it was pressed.

    A reply is so ended between two steps of the engine, which then goes on as if it were complete.
    """
    is_pressed = threading.Event()
    before = signal.signal(signal.SIGINT, lambda _number, _frame: is_pressed.set())
    try:
        yield is_pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP end the program by an exception: a terminal gets its modes back."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, end)
