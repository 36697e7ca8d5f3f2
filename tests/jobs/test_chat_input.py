"""What is typed into a chat: lines put together, and the history of earlier sessions."""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nanochat_core.jobs.chat_input import (
    MAX_ENTRIES,
    MAX_ENTRY_CHARACTERS,
    InputHistory,
    MessageReader,
    Typed,
)


def read(lines: Sequence[str]) -> Typed:
    rest: Iterator[str] = iter(lines)

    def read_line(_prompt: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    typed = MessageReader(read_line).read()
    assert list(rest) == []
    return typed


@pytest.mark.parametrize(
    ("lines", "typed"),
    [
        (["hello "], Typed("hello")),
        ([""], Typed("")),
        (["one\\", "two\\", "three"], Typed("one\ntwo\nthree")),
        (["a path\\\\"], Typed("a path\\\\")),
        (["/system one\\", "two"], Typed("/system one\ntwo")),
        (["pasted\nall\nat once"], Typed("pasted\nall\nat once")),
        (["pasted\nand\\", "typed"], Typed("pasted\nand\ntyped")),
        (['"""one', "", "  two\\", 'three"""'], Typed("one\n\n  two\\\nthree", True)),
        (['"""', "/quit", '"""'], Typed("/quit", True)),
        (['""" all in one line """'], Typed("all in one line", True)),
        (['"""pasted\nblock"""'], Typed("pasted\nblock", True)),
        (['say """ here'], Typed('say """ here')),
    ],
)
def test_lines_become_a_message(lines: list[str], typed: Typed) -> None:
    assert read(lines) == typed


def test_the_end_of_the_input_ends_a_message_that_is_not_complete() -> None:
    with pytest.raises(EOFError):
        read(['"""one', "two"])


def test_the_history_outlives_the_session_and_is_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history"
    InputHistory(path).add("one\ntwo")
    path.chmod(0o644)
    InputHistory(path).add("three \u2028 \x1b[2J")
    assert InputHistory(path).entries() == ["one\ntwo", "three \u2028 \x1b[2J"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_newest_entries_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "history"
    numbers = [str(number) for number in range(2 * MAX_ENTRIES + 1)]
    path.write_text("".join(f"{json.dumps(number)}\n" for number in numbers))
    assert InputHistory(path).entries() == numbers[-MAX_ENTRIES:]
    assert len(path.read_text().splitlines()) == MAX_ENTRIES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["history"]
    InputHistory(path).add("x" * (MAX_ENTRY_CHARACTERS + 1))
    assert InputHistory(path).entries() == numbers[-MAX_ENTRIES:]


@pytest.mark.parametrize("content", [b"", b'\xff\x00{\n[]\n12\n"kept"\n"cut'])
def test_a_damaged_history_costs_only_what_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "history").write_bytes(content)
    assert InputHistory(tmp_path / "history").entries() == (["kept"] if content else [])


def test_without_a_place_for_it_there_is_no_history(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "history"):
        history = InputHistory(path)
        history.add("lost")
        assert history.entries() == []
