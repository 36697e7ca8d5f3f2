"""Talk to a chat model in a terminal: `python -m nanochat_core.jobs.chat --model … --tokenizer …`.

One reply to `-p TEXT`, to a text from a pipe, or to both (`-p` first); else a conversation.
Modules that need torch are imported after the arguments are read.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import select
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat_core.errors import ConfigError, NanochatError, UnknownNameError
from nanochat_core.inference.named_models import ModelShelf, NamedModel
from nanochat_core.jobs.chat_commands import Commands, described
from nanochat_core.jobs.chat_dialogue import (
    MAX_CHARACTERS,
    Answer,
    ChatModel,
    Dialogue,
    Hear,
    check_text,
    load_chat_model,
    unheard,
)
from nanochat_core.jobs.chat_input import InputHistory, LineEditor, MessageReader, Typed
from nanochat_core.jobs.chat_saving import json_line
from nanochat_core.jobs.chat_settings import KNOBS, ChatSettings
from nanochat_core.jobs.chat_terminal import (
    Screen,
    end_in_order,
    harmless,
    status,
    stoppable,
    takes_colours,
    waiting,
)

EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_NOT_WRITTEN = 2, 130, 1
MAX_BYTES = 4 * MAX_CHARACTERS
"""Of a text from a pipe: UTF-8 has at most four a character."""
PATIENCE_SECONDS = 3.0
"""After so long without a text from the pipe, people are told what is waited for."""
HINT = "/help lists the commands; Ctrl-C stops a reply, Ctrl-D ends."


@dataclass(frozen=True)
class ChatModels:
    """Loads models by name, as long as there is a store to find them in."""

    device: str
    shelf: ModelShelf | None

    def names(self) -> list[NamedModel]:
        """The models that there are."""
        return self._shelf().names()

    def load(self, name: str) -> ChatModel:
        """One of them, ready to answer."""
        with waiting(sys.stderr, f"loading {name} ..."):
            try:
                found = self._shelf().find(name)
            except (OSError, RuntimeError, ValueError) as error:  # a name that no file can have
                raise UnknownNameError(f"no model can be called {name!r} ({error})") from error
            ref = found.ref.short if found.ref else ""
            return load_chat_model(name, found.model, found.tokenizer, self.device, ref)

    def _shelf(self) -> ModelShelf:
        if self.shelf is None:
            raise ConfigError("this chat knows one model only; start it with --store PLACE")
        return self.shelf


class TerminalChat:
    """A conversation in a terminal: reads, answers and obeys until it is ended."""

    def __init__(self, dialogue: Dialogue, screen: Screen, models: ChatModels) -> None:
        self.dialogue, self.screen = dialogue, screen
        self.commands = Commands(dialogue, screen, models, self._retry)
        self._has_told_dropped = False

    def converse(self, editor: LineEditor) -> None:
        """Take messages and commands until /quit, Ctrl-D, or Ctrl-C twice."""
        reader, has_warned = MessageReader(editor.read_line), False
        while not self.commands.has_quit:
            try:
                typed = reader.read()
                has_warned = False
                if typed.text:
                    editor.remember(typed)
                    self._take(typed)
            except EOFError:
                self.screen.note("")
                return
            except UnicodeDecodeError:
                self.screen.note("that was not UTF-8 and is not sent", "error")
            except KeyboardInterrupt:
                if has_warned and editor.was_clear():
                    self.screen.note("")
                    return
                self.screen.note("\nCtrl-C again or Ctrl-D ends; /help lists the commands")
                has_warned = True

    def _take(self, typed: Typed) -> None:
        if typed.text.startswith("/") and not typed.is_block:
            if not typed.text.startswith("//"):
                self.commands.carry_out(typed.text)
                return
            typed = Typed(typed.text[1:])
        try:
            self._answer(lambda hear, stop: self.dialogue.ask(typed.text, hear, stop))
        except NanochatError as error:
            self.screen.note(str(error), "error")

    def _retry(self) -> None:
        self._answer(self.dialogue.retry)

    def _answer(self, ask: Callable[[Hear, Callable[[], bool]], Answer]) -> None:
        with stoppable() as is_stopped:
            answer = ask(self.screen.hear, is_stopped)
            self.screen.end_reply()
        if self.screen.is_terminal:
            self.screen.note(status(answer))
        if answer.num_dropped and not self._has_told_dropped:
            self._has_told_dropped = True
            self.screen.note(
                "The conversation no longer fits the model's context: from here on the oldest "
                "exchanges are left out of what it is given. /reset begins anew."
            )


def read_pipe() -> str:
    """All text that is piped in; ConfigError when it is too long or not UTF-8."""
    if sys.stdin is None:  # it was closed by whoever started us
        return ""
    if os.name != "nt":  # where only sockets can be waited for
        ready, _, _ = select.select([sys.stdin], [], [], PATIENCE_SECONDS)
        if not ready:
            sys.stderr.write("waiting for a text from the pipe; < /dev/null gives none\n")
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ConfigError(f"the piped text has more than {MAX_BYTES:,} bytes; shorten it")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the piped text is not UTF-8 (byte {error.start:,}); give text in that encoding"
        ) from None


def read_message(arguments: argparse.Namespace) -> str | None:
    """The one message of `-p` and the pipe, or None for a conversation; ConfigError for none."""
    prompt: str | None = arguments.prompt
    has_pipe = sys.stdin is None or not sys.stdin.isatty()
    if prompt is None and not has_pipe:
        if arguments.json:
            raise ConfigError("--json gives one reply to one message: give -p TEXT or a pipe, too")
        return None
    if prompt is not None:
        check_text(prompt)
    piped = read_pipe() if has_pipe else ""
    message = "\n\n".join(text.strip() for text in (prompt, piped) if text and text.strip())
    check_text(message)
    return message


def run_chat(arguments: argparse.Namespace, settings: ChatSettings) -> None:
    """Load the model, and answer one message or converse."""
    message = read_message(arguments)
    name = arguments.name or arguments.model.name
    with waiting(sys.stderr, f"loading {name} ..."):
        model = load_chat_model(
            name, arguments.model, arguments.tokenizer, arguments.device, arguments.ref
        )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for terminals that are not of UTF-8
    environ = os.environ  # noqa: TID251  an entry: NO_COLOR and TERM are read here alone
    screen = Screen(sys.stdout, sys.stderr, has_colours=takes_colours(sys.stdout, environ))
    dialogue = Dialogue(model, settings)
    if message is None:
        shelf = ModelShelf(arguments.store, arguments.by_hand) if arguments.store else None
        chat = TerminalChat(dialogue, screen, ChatModels(arguments.device, shelf))
        screen.note(f"{described(model)}. {HINT}")
        end_in_order()
        history = None if arguments.no_history else InputHistory.of_user()
        chat.converse(LineEditor(history, chat.commands.complete))
    elif arguments.json:
        screen.write(json_line(dialogue.ask(message, unheard)) + "\n")
    else:
        try:
            dialogue.ask(message, screen.hear)
        except KeyboardInterrupt:
            screen.close_line()
            raise
        screen.end_reply()


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(prog="chat", description="Talk to a chat model.")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of the model")
    add("--tokenizer", type=Path, required=True, help="folder of its tokenizer")
    add("--name", default="", help="what the model is called here; else its folder")
    add("--ref", default="", help="what the name stands for in the store")
    add("--store", default="", help="where /model finds others; else there are none")
    add("--by-hand", type=Path, help="folder of models made by hand, for /model, too")
    add("-p", "--prompt", help="one message; without it and a pipe, a conversation")
    add("--json", action="store_true", help="one reply as one JSON object")
    add("--system", default="", help="text that stands before the conversation")
    add("--stop", action="append", default=[], help="a text that ends a reply; may be repeated")
    for name, knob in KNOBS.items():
        names = [f"--{name.replace('_', '-')}"]
        names += ["--max-new-tokens"] if name == "max_tokens" else []
        default = getattr(ChatSettings(), name)
        add(*names, default=default, help=f"{knob.expected}; {knob.meaning} (%(default)s)")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--no-history", action="store_true", help="keep nothing of what is typed")
    return parser.parse_args(argv)


def read_settings(arguments: argparse.Namespace) -> ChatSettings:
    """The settings of the arguments; ConfigError for what cannot work."""
    if "" in arguments.stop:
        raise ConfigError("--stop got no text; give the text that ends a reply")
    settings = ChatSettings(stops=tuple(arguments.stop), system=arguments.system.strip())
    for name in KNOBS:
        settings = settings.with_number(name, getattr(arguments, name))
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parse_arguments(argv)
    try:
        run_chat(arguments, read_settings(arguments))
    except NanochatError as error:
        sys.stderr.write(f"error: {harmless(str(error))}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal is gone
            sys.stderr.write(f"error: {harmless(str(error))}\n")
        # Pointing stdout elsewhere keeps the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NOT_WRITTEN
    return 0


if __name__ == "__main__":
    sys.exit(main())
