"""The chat command: one message, a pipe, a conversation, mistakes."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat_core.inference.loading import save_model
from nanochat_core.inference.streaming import Piece
from nanochat_core.jobs import chat
from tests.inference.scripted import bigram_model, byte_tokenizer, chain


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """A chat model that answers `yes`, and its tokenizer."""
    tokenizer = byte_tokenizer()
    successors = chain(tokenizer, "assistant_start", "y", "e", "s", "assistant_end")
    save_model(bigram_model(tokenizer, successors), tmp_path / "model", {})
    tokenizer.save(tmp_path / "tokenizer")
    return ["--model", str(tmp_path / "model"), "--tokenizer", str(tmp_path / "tokenizer")]


def type_in(monkeypatch: pytest.MonkeyPatch, text: str, *, is_terminal: bool) -> None:
    stdin = io.StringIO(text)
    stdin.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", stdin)


def test_one_message_gets_one_reply(folders: list[str], capsys: pytest.CaptureFixture) -> None:
    assert chat.main([*folders, "-p", "Are you there?", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "yes\n"


def test_a_text_from_a_pipe_is_one_message(
    folders: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "Are you\nthere?\n", is_terminal=False)
    assert chat.main([*folders, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "yes\n"


def test_a_conversation_is_kept_until_quit(
    folders: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[chat.Chat] = []
    load = chat.load_chat
    monkeypatch.setattr(chat, "load_chat", lambda a: made.append(load(a)) or made[0])
    type_in(monkeypatch, "one\n\ntwo\n/quit\nthree\n", is_terminal=True)
    assert chat.main([*folders, "--temperature", "0"]) == 0
    assert capsys.readouterr().out.count("yes\n") == 2
    assert [m.text for m in made[0].messages] == ["one", "yes", "two", "yes"]


def test_a_tool_call_is_shown_in_brackets() -> None:
    pieces = [
        Piece("text", "It is "),
        Piece("python", "6*"),
        Piece("python", "7"),
        Piece("python_output", "42"),
        Piece("text", "42."),
    ]
    out = io.StringIO()
    chat.show(pieces, out)
    chat.show([Piece("python", "1/0")], out)
    assert out.getvalue() == "It is [6*7 = 42]42.\n[1/0]\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", " "], "message is empty"),
        (["-p", "x", "--temperature", "-1"], "temperature"),
        (["-p", "x", "--model", "nowhere"], "config.json"),
        (["-p", "x", "--device", "abacus"], "abacus"),
    ],
)
def test_a_mistake_is_one_line(
    folders: list[str], capsys: pytest.CaptureFixture, arguments: list[str], words: str
) -> None:
    assert chat.main([*folders, *arguments]) == chat.EXIT_USER_ERROR
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1


@pytest.mark.e2e
def test_ctrl_c_stops_the_reply_and_not_the_program(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    endless = chain(tokenizer, "assistant_start", "h", "a", "h")
    save_model(bigram_model(tokenizer, endless, sequence_len=9000), tmp_path / "model", {})
    tokenizer.save(tmp_path / "tokenizer")
    command = [sys.executable, "-m", "nanochat_core.jobs.chat", "--max-new-tokens", "80000"]
    command += ["--model", str(tmp_path / "model"), "--tokenizer", str(tmp_path / "tokenizer")]
    terminal, end = pty.openpty()
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    try:
        read_until(terminal, b"> ")
        os.write(terminal, b"laugh\n")
        read_until(terminal, b"hahahaha")
        process.send_signal(signal.SIGINT)
        read_until(terminal, b"(stopped)\r\n> ")
        os.write(terminal, b"/quit\n")
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        os.close(terminal)


def read_until(terminal: int, wanted: bytes, seconds: float = 60.0) -> None:
    seen, deadline = b"", time.monotonic() + seconds
    while wanted not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no {wanted!r} within {seconds} s, but {seen[-500:]!r}"
        seen += os.read(terminal, 65536)
