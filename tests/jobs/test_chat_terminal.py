"""The chat in a real terminal: what is shown, Ctrl-C, several lines, history, another model."""

import io
import json
import signal
import sys
from pathlib import Path

import pytest

from nanochat_core.jobs.chat_dialogue import unheard
from nanochat_core.jobs.chat_terminal import Screen, harmless, status, takes_colours
from tests.jobs.chat_tools import (
    ENDLESS,
    YES,
    Terminal,
    chat_command,
    greedy_dialogue,
    save_by_hand,
    save_scripted,
)


class FakeTerminal(io.StringIO):
    """Says of itself that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\tText\nüber 🙂", "plain\tText\nüber 🙂"),
        ("\x1b[2J\x1b]0;title\x07", "^[[2J^[]0;title^G"),
        ("a\rb\x08c\x7f\x00", "a^Mb^Hc^?^@"),
        ("\x9b31m\x85", "\ufffd31m\ufffd"),
        ("\u202eabc\u2066", "\ufffdabc\ufffd"),
    ],
)
def test_nothing_that_is_shown_acts_on_the_terminal(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_a_tool_call_is_shown_in_brackets() -> None:
    out = io.StringIO()
    screen = Screen(out, io.StringIO())
    for kind, text in (
        ("text", "It is "),
        ("python", "6*"),
        ("python", "7"),
        ("python_output", "42"),
        ("text", "42."),
    ):
        screen.hear(kind, text)
    screen.end_reply()
    screen.hear("python", "1/0")
    screen.end_reply()
    assert out.getvalue() == "It is [6*7 = 42]42.\n[1/0]\n"


def test_colours_are_ours_and_control_characters_are_not() -> None:
    out = FakeTerminal()
    screen = Screen(out, io.StringIO(), has_colours=True)
    screen.hear("text", "\x1b[31mred")
    screen.hear("python", "6")
    screen.end_reply()
    screen.note("done")
    assert out.getvalue() == (
        "^[[31mred\x1b[36m[\x1b[0m\x1b[36m6\x1b[0m\x1b[36m]\x1b[0m\n\x1b[2mdone\x1b[0m\n"
    )


def test_what_goes_to_a_file_is_unchanged() -> None:
    out, aside = io.StringIO(), io.StringIO()
    screen = Screen(out, aside)
    screen.hear("text", "\x1b[31mred")
    screen.end_reply()
    screen.note("done")
    assert (out.getvalue(), aside.getvalue()) == ("\x1b[31mred\n", "done\n")


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(environ: dict[str, str], wanted: bool) -> None:
    assert takes_colours(FakeTerminal(), environ) is wanted
    assert takes_colours(io.StringIO(), environ) is False


def test_the_state_after_a_reply_says_what_cut_it() -> None:
    dialogue = greedy_dialogue(*ENDLESS)
    dialogue.settings = dialogue.settings.with_number("max_tokens", 3)
    cut = status(dialogue.ask("x", unheard))
    assert cut.startswith("(3 tokens, ")
    assert cut.endswith(" tokens/s, cut: max_tokens is 3)")
    assert "stopped before it said anything" in status(dialogue.ask("x", unheard, lambda: True))


@pytest.mark.e2e
def test_ctrl_c_stops_the_reply_and_not_the_program(tmp_path: Path) -> None:
    folders = save_scripted(tmp_path, *ENDLESS, sequence_len=9000)
    command = chat_command(*folders, "--max-tokens", "80000", "--temperature", "0")
    with Terminal(command, tmp_path, NO_COLOR="1") as terminal:
        assert "loading model ..." in terminal.wait_for("> ")
        for _ in range(2):
            terminal.type("laugh\r")
            terminal.wait_for("hahahaha")
            terminal.type("\x03")
            assert "tokens/s, stopped)" in terminal.wait_for("> ")
        terminal.type("not sent")
        terminal.wait_for("not sent")
        terminal.settle()
        terminal.type("\x03")
        terminal.wait_for("Ctrl-C again or Ctrl-D ends")
        terminal.wait_for("> ")
        terminal.type("/max_tokens 4\r")
        terminal.wait_for("> ")
        terminal.type("laugh\r")
        assert "haha\r\n(4 tokens" in terminal.wait_for("> ")
        terminal.settle()
        terminal.type("\x03")
        terminal.wait_for("> ")
        terminal.settle()
        terminal.type("\x03")
        assert terminal.end() == 0


@pytest.mark.e2e
def test_several_lines_are_one_message_however_they_come(tmp_path: Path) -> None:
    folders = save_scripted(tmp_path, *YES)
    with Terminal(chat_command(*folders, "--temperature", "0"), tmp_path) as terminal:
        terminal.wait_for("> ")
        for keys in (
            "one\\\rtwo\r",
            '"""one\r/quit\rtwo"""\r',
            "\x1b[200~one\r/quit\rtwo\x1b[201~\r",
            "//quit\r",
        ):
            terminal.type(keys)
            terminal.wait_for("yes\r\n")
            terminal.wait_for("> ")
        terminal.type(f"/save {tmp_path}/chat.json\r")
        terminal.wait_for("saved to")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.end() == 0
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    asked = [message["content"] for message in messages if message["role"] == "user"]
    assert asked == ["one\ntwo", "one\n/quit\ntwo", "one\n/quit\ntwo", "/quit"]


@pytest.mark.e2e
def test_what_was_typed_comes_back_in_the_next_session(tmp_path: Path) -> None:
    folders = save_scripted(tmp_path, *YES)
    command = chat_command(*folders, "--temperature", "0")
    for keys in ('"""/first\rtwo"""\r', "\x1b[A\x1b[A\r"):
        with Terminal(command, tmp_path) as terminal:
            terminal.wait_for("> ")
            terminal.type(keys)
            terminal.wait_for("yes\r\n")
            terminal.wait_for("> ")
            terminal.type("/quit\r")
            assert terminal.end() == 0
    history = tmp_path / ".cache" / "nanochat-flows" / "chat_history.jsonl"
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert lines == ["//first\ntwo", "/quit", "//first\ntwo", "/quit"]
    assert history.stat().st_mode & 0o777 == 0o600


@pytest.mark.e2e
def test_a_python_without_readline_can_chat(tmp_path: Path) -> None:
    folders = save_scripted(tmp_path, *YES)
    program = (
        "import sys; sys.modules['readline'] = None; from nanochat_core.jobs import chat; "
        "sys.exit(chat.main())"
    )
    command = [sys.executable, "-c", program, *folders, "--temperature", "0"]
    with Terminal(command, tmp_path, NO_COLOR="1") as terminal:
        terminal.wait_for("> ")
        terminal.type("one\\\r")
        terminal.wait_for(". ")
        terminal.type("two\r")
        terminal.wait_for("yes\r\n(3 tokens")
        terminal.wait_for("> ")
        terminal.settle()
        terminal.type("\x03")
        terminal.wait_for("Ctrl-C again or Ctrl-D ends")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.mark.e2e
def test_another_model_is_found_by_tab_and_goes_on(tmp_path: Path) -> None:
    folders = save_scripted(tmp_path, *YES)
    save_by_hand(tmp_path / "hand", "mine", "assistant_start", "n", "o", "assistant_end")
    places = ["--store", str(tmp_path / "store"), "--by-hand", str(tmp_path / "hand")]
    command = chat_command(*folders, *places, "--temperature", "0")
    with Terminal(command, tmp_path) as terminal:
        terminal.wait_for("> ")
        terminal.type("well\r")
        terminal.wait_for("yes\r\n")
        terminal.type("/mod\tsf\t\r")
        terminal.wait_for("sft/mine (cpu) answers from here on")
        terminal.type("and now\r")
        terminal.wait_for("no\r\n")
        terminal.type("/model nothing\r")
        terminal.wait_for("'nothing' names nothing")
        terminal.type("/model\r")
        terminal.wait_for("* sft/mine")
        terminal.type("/quit\r")
        assert terminal.end() == 0


@pytest.mark.e2e
def test_a_model_cannot_take_over_the_terminal(tmp_path: Path) -> None:
    steps = ("assistant_start", "\x1b", "[", "2", "J", "\x07", "assistant_end")
    folders = save_scripted(tmp_path, *steps)
    with Terminal(chat_command(*folders, "--temperature", "0"), tmp_path) as terminal:
        terminal.wait_for("> ")
        terminal.type("clear\r")
        assert "\r^[[2J^G\r\n" in terminal.wait_for("tokens/s")


@pytest.mark.e2e
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_ends_it_leaves_the_terminal_as_it_was(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folders = save_scripted(tmp_path, *YES)
    with Terminal(chat_command(*folders), tmp_path) as terminal:
        before = terminal.modes()
        terminal.wait_for("> ")
        terminal.type("half a")
        terminal.wait_for("half a")
        terminal.settle()
        assert terminal.modes() != before
        terminal.process.send_signal(number)
        assert terminal.end() == code
        assert terminal.modes() == before
