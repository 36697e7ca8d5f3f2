"""The chat command without a terminal: one message, a pipe, JSON, mistakes."""

import contextlib
import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from nanochat_core.jobs import chat
from tests.inference.scripted import byte_tokenizer
from tests.jobs.chat_tools import ENDLESS, SUM, YES, chat_command, save_scripted

Pipe: TypeAlias = Callable[[bytes], None]


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """The options for a model that answers `yes`, greedily."""
    return [*save_scripted(tmp_path, *YES), "--temperature", "0"]


@pytest.fixture(autouse=True)
def pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pipe]:
    """Puts bytes into standard input, which is empty without it."""
    with contextlib.ExitStack() as stack:

        def put(content: bytes) -> None:
            place = tmp_path / "piped"
            place.write_bytes(content)
            monkeypatch.setattr("sys.stdin", stack.enter_context(place.open()))

        put(b"")
        yield put


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    stdin = io.StringIO(text)
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", stdin)


def prompt_tokens(capsys: pytest.CaptureFixture) -> int:
    return int(json.loads(capsys.readouterr().out)["prompt_tokens"])


def test_one_message_gets_one_reply(folders: list[str], capsys: pytest.CaptureFixture) -> None:
    assert chat.main([*folders, "-p", "Are you there?"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("yes\n", "")


def test_a_text_from_a_pipe_is_one_message(
    folders: list[str], capsys: pytest.CaptureFixture, pipe: Pipe
) -> None:
    pipe(b"Are you\nthere?\n")
    assert chat.main(folders) == 0
    assert capsys.readouterr().out == "yes\n"


def test_the_prompt_stands_before_the_piped_text(
    folders: list[str], capsys: pytest.CaptureFixture, pipe: Pipe
) -> None:
    assert chat.main([*folders, "--json", "-p", "Sum up:\n\nIt is late."]) == 0
    expected = prompt_tokens(capsys)
    pipe(b"It is late.\n")
    assert chat.main([*folders, "--json", "-p", "Sum up:"]) == 0
    assert prompt_tokens(capsys) == expected


def test_json_says_everything_about_a_reply(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = [*save_scripted(tmp_path, *SUM), "--name", "abacus", "--ref", "sft/3f2a91c0"]
    options += ["--max-tokens", "5", "--seed", "7", "--temperature", "0.001", "--top-k", "1"]
    assert chat.main([*options, "--json", "--system", "Sum.", "--stop", "STOP", "-p", "x"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    values = json.loads(line)
    assert values.pop("seconds") > 0
    assert values.pop("tokens_per_second") > 0
    assert values == {
        "reply": "",
        "parts": [{"kind": "python", "text": "6*7"}, {"kind": "python_output", "text": "42"}],
        "model": "abacus",
        "artifact": "sft/3f2a91c0",
        "settings": {
            "temperature": 0.001,
            "top_k": 1,
            "top_p": 1.0,
            "max_tokens": 5,
            "seed": 7,
            "stop": ["STOP"],
            "system": "Sum.",
        },
        "finish_reason": "length",
        # bos, brackets of the user and the assistant's opening one; "Sum.", a blank line, "x".
        "prompt_tokens": 4 + 4 + 2 + 1,
        # The tool's tokens are no sampled ones: brackets and "42" come on top.
        "reply_tokens": 5 + 4,
    }


def test_the_older_name_of_max_tokens_still_works(
    folders: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert chat.main([*folders, "-p", "x", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out == "ye\n"


def test_a_stop_text_ends_the_reply_before_it(
    folders: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert chat.main([*folders, "-p", "x", "--stop", "q", "--stop", "es"]) == 0
    assert capsys.readouterr().out == "y\n"


def test_a_conversation_goes_on_until_quit(
    folders: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "one\n\ntwo\n/undo\n/quit\nthree\n")
    assert chat.main([*folders, "--no-history"]) == 0
    said = capsys.readouterr()
    # Replies alone go to a file; what is meant for the person goes beside them.
    assert said.out == "yes\nyes\n"
    assert "took back: two" in said.err


def test_a_conversation_ends_with_its_input(
    folders: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "one")
    assert chat.main([*folders, "--no-history"]) == 0
    assert capsys.readouterr().out == "yes\n"


def test_a_conversation_is_told_once_that_its_beginning_is_left_out(
    folders: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, f"{'x' * 200}\n" * 4)
    assert chat.main([*folders, "--no-history"]) == 0
    said = capsys.readouterr()
    assert said.out == "yes\n" * 4
    assert said.err.count("oldest exchanges are left out") == 1


def test_a_message_that_cannot_fit_costs_nothing_but_itself(
    folders: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, f"{'x' * 400}\nand now\n")
    assert chat.main([*folders, "--no-history"]) == 0
    said = capsys.readouterr()
    assert said.out == "yes\n"
    assert "has 404 tokens; model takes 320: shorten it" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", " "], "message is empty"),
        (["-p", "\udcff"], "UTF-8"),
        (["-p", "x" * 400], "404 tokens"),
        (["-p", "x", "--temperature", "-1"], "temperature -1: give 0 (greedy) or more"),
        (["-p", "x", "--temperature", "nan"], "temperature nan"),
        (["-p", "x", "--top-p", "0"], "top_p 0: give more than 0"),
        (["-p", "x", "--top-k", "1.5"], "top_k 1.5"),
        (["-p", "x", "--max-tokens", "0"], "max_tokens 0: give 1 or more"),
        (["-p", "x", "--seed", "9" * 30], "seed 999"),
        (["-p", "x", "--stop", ""], "--stop got no text"),
        (["-p", "x", "--model", "nowhere"], "config.json"),
        (["-p", "x", "--device", "abacus"], "abacus"),
        ([], "message is empty"),
    ],
)
def test_a_mistake_is_one_line(
    folders: list[str], capsys: pytest.CaptureFixture, arguments: list[str], words: str
) -> None:
    assert chat.main([*folders, *arguments]) == chat.EXIT_USER_ERROR
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"abc\xff", "not UTF-8 (byte 3)"), (b"x" * 60_000, "60,004 tokens"), (b" \n", "is empty")],
)
def test_a_pipe_that_cannot_be_sent_is_refused(
    folders: list[str],
    capsys: pytest.CaptureFixture,
    pipe: Pipe,
    content: bytes,
    words: str,
) -> None:
    pipe(content)
    assert chat.main(folders) == chat.EXIT_USER_ERROR
    assert words in capsys.readouterr().err


def test_json_wants_a_message(
    folders: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "")
    assert chat.main([*folders, "--json"]) == chat.EXIT_USER_ERROR
    assert "-p TEXT or a pipe" in capsys.readouterr().err


def test_another_encoding_than_utf8_costs_only_what_it_cannot_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The two bytes of an umlaut.
    tokenizer = byte_tokenizer()
    steps = [tokenizer.special_id("assistant_start"), *tokenizer.encode("\xfc")]
    folders = save_scripted(tmp_path, *steps, "assistant_end")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert chat.main([*folders, "--temperature", "0", "-p", "x"]) == 0
    assert out.buffer.getvalue() == b"?\n"  # type: ignore[attr-defined]


@pytest.mark.e2e
def test_a_pipe_without_an_end_is_refused(folders: list[str]) -> None:
    command = chat_command(*folders)
    with open("/dev/zero", "rb") as endless:
        ended = subprocess.run(command, stdin=endless, capture_output=True, timeout=60, check=False)
    assert ended.returncode == chat.EXIT_USER_ERROR
    assert b"more than 4,000,000 bytes" in ended.stderr


@pytest.mark.e2e
def test_a_reader_that_leaves_ends_the_reply_quietly(tmp_path: Path) -> None:
    folders = save_scripted(tmp_path, *ENDLESS, sequence_len=9000)
    command = chat_command(*folders, "-p", "x", "--max-tokens", "80000")
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(20) == b"hahahahahahahahahaha"
    process.stdout.close()
    assert process.wait(timeout=60) == chat.EXIT_NOT_WRITTEN
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
