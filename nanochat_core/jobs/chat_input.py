"""What a person types in a chat: messages of one line or many, kept for the next session.

A line that ends with a backslash goes on in the next one; `\"\"\"` opens and closes a block; a text
that is pasted stays one message where the terminal tells what is pasted (GNU readline 8.1).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from nanochat_core.artifacts.location import user_cache_folder

BLOCK = '"""'
MAX_ENTRIES = 1000
MAX_ENTRY_CHARACTERS = 10_000

Complete = Callable[[str], Sequence[str]]
"""The whole lines that a line may become."""


@dataclass(frozen=True)
class Typed:
    """A message or a command; what stood between quotes is never a command."""

    text: str
    is_block: bool = False


class MessageReader:
    """Reads what is typed, line by line, and puts it together."""

    def __init__(self, read_line: Callable[[str], str]) -> None:
        self._read_line = read_line

    def read(self) -> Typed:
        """The next message; EOFError at the end, KeyboardInterrupt from Ctrl-C."""
        line = self._read_line("> ")
        if line.lstrip().startswith(BLOCK):
            return Typed(self._block(line.lstrip().removeprefix(BLOCK)), is_block=True)
        lines = [line]
        while _goes_on(lines[-1]):
            lines[-1] = lines[-1][:-1]
            lines.append(self._read_line(". "))
        return Typed("\n".join(lines).strip())

    def _block(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith(BLOCK):
            lines.append(self._read_line(". "))
        lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
        return "\n".join(lines).strip()


def _goes_on(line: str) -> bool:
    """Whether a line ends with a backslash that is not itself behind one."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


class LineEditor:
    """`input` with arrow keys, history and completion, as far as this Python has them."""

    def __init__(self, history: InputHistory | None, complete: Complete) -> None:
        self._history, self._complete = history, complete
        self._readline = self._prepared()
        for entry in history.entries() if history else ():
            self._offer(entry)

    def read_line(self, prompt: str) -> str:
        """One line, or several that were pasted at once."""
        if sys.stdout.isatty():
            line = input(prompt)
        else:
            # `input` would write the prompt between the replies.
            sys.stderr.write(prompt)
            sys.stderr.flush()
            line = input()
        return line.replace("\r\n", "\n").replace("\r", "\n")

    def remember(self, typed: Typed) -> None:
        """Offer it again, now and in later sessions."""
        # Recalled, it is read anew: what was no command then must be none again.
        is_command_like = typed.is_block and typed.text.startswith("/")
        entry = f"/{typed.text}" if is_command_like else typed.text
        self._offer(entry)
        if self._history is not None:
            self._history.add(entry)

    def was_clear(self) -> bool:
        """Whether nothing had been typed when Ctrl-C was pressed."""
        return self._readline is None or not self._readline.get_line_buffer()

    def _prepared(self) -> ModuleType | None:
        try:
            readline = importlib.import_module("readline")
        except ImportError:  # no such module on Windows
            return None
        readline.set_auto_history(False)
        readline.set_completer_delims("")
        readline.set_completer(self._completion)
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind("set enable-bracketed-paste on")
        return readline

    def _offer(self, entry: str) -> None:
        if self._readline is not None:
            with contextlib.suppress(ValueError):  # NUL, or what the locale cannot say
                self._readline.add_history(entry)

    def _completion(self, line: str, number: int) -> str | None:
        found = list(self._complete(line))
        return found[number] if number < len(found) else None


class InputHistory:
    """What was typed in earlier sessions: a file that only this user reads, one JSON text a line.

    A file that cannot be read or written costs the history, never the chat.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_user(cls) -> InputHistory | None:
        """The one in the user's cache folder; None for a user without a home."""
        try:
            return cls(user_cache_folder() / "chat_history.jsonl")
        except RuntimeError:  # so Path.home() says it
            return None

    def entries(self) -> list[str]:
        """The newest of them, the newest last."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        found = []
        for line in lines[-MAX_ENTRIES:]:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                found += [entry] if isinstance(entry, str) else []
        if len(lines) > 2 * MAX_ENTRIES:
            self._replace(found)
        return found

    def add(self, entry: str) -> None:
        """Append one; very long ones are not kept."""
        if len(entry) > MAX_ENTRY_CHARACTERS:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._write(self.path, flags, [entry])

    def _replace(self, entries: Sequence[str]) -> None:
        short = self.path.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self._write(short, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, entries)
            short.replace(self.path)

    def _write(self, path: Path, flags: int, entries: Sequence[str]) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        descriptor = os.open(path, flags, 0o600)
        try:
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600)
            os.write(descriptor, lines.encode("ascii"))
        finally:
            os.close(descriptor)
