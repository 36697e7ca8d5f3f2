"""Scripted models to chat with, and a terminal that is driven from outside."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.loading import save_model
from nanochat_core.jobs.chat_dialogue import ChatModel, Dialogue
from nanochat_core.jobs.chat_settings import ChatSettings
from tests.inference.scripted import bigram_model, byte_tokenizer, chain

YES = ("assistant_start", "y", "e", "s", "assistant_end")
SUM = ("assistant_start", "python_start", "6", "*", "7", "python_end")
ENDLESS = ("assistant_start", "h", "a", "h")

# A terminal belongs to a session: only then does its Ctrl-C reach whoever runs in it.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def scripted_model(*steps: str, name: str = "scripted", **changes) -> ChatModel:
    """A model that says these steps, whatever it is asked."""
    tokenizer = byte_tokenizer()
    model = bigram_model(tokenizer, chain(tokenizer, *steps), **changes)
    return ChatModel(name, InferenceEngine(model, tokenizer))


def greedy_dialogue(*steps: str, system: str = "", **changes) -> Dialogue:
    """A conversation with such a model, at temperature 0."""
    settings = ChatSettings(temperature=0.0, system=system)
    return Dialogue(scripted_model(*steps, **changes), settings)


def save_scripted(folder: Path, *steps: str | int, **changes) -> list[str]:
    """Write such a model; returns the options of the job that name it."""
    tokenizer = byte_tokenizer()
    model = bigram_model(tokenizer, chain(tokenizer, *steps), **changes)
    save_model(model, folder / "model", {})
    tokenizer.save(folder / "tokenizer")
    return ["--model", str(folder / "model"), "--tokenizer", str(folder / "tokenizer")]


def save_by_hand(base: Path, tag: str, *steps: str) -> None:
    """Write such a model where `nanochat train sft` would have put it."""
    result = base / "sft" / tag / "model-1"
    save_scripted(base / tag, *steps)
    result.parent.mkdir(parents=True)
    (base / tag / "model").rename(result)
    (base / tag / "tokenizer").rename(result / "tokenizer")
    (result / "outputs.json").write_text("{}")


def chat_command(*arguments: str) -> list[str]:
    """The command line of the job."""
    return [sys.executable, "-m", "nanochat_core.jobs.chat", *arguments]


class Terminal:
    """A program in a terminal of its own, and what it wrote there so far."""

    def __init__(self, command: Sequence[str], home: Path, **environ: str) -> None:
        self._ours, theirs = pty.openpty()
        values = {**os.environ, "HOME": str(home), "TERM": "xterm", **environ}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={name: value for name, value in values.items() if value},
        )
        os.close(theirs)
        self.seen = b""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._ours, text.encode())

    def wait_for(self, wanted: str, seconds: float = 60.0) -> str:
        """What was written since the last wait, up to and with this text."""
        end, deadline = wanted.encode(), time.monotonic() + seconds
        while end not in self.seen:
            ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {wanted!r} within {seconds} s, but {self.seen[-500:]!r}"
            self.seen += os.read(self._ours, 65536)
        before, _, self.seen = self.seen.partition(end)
        return (before + end).decode(errors="replace")

    def settle(self) -> None:
        """Wait until the program waits for a key.

        Between its prompt and that, Python notes a signal but acts on it after the next key only.
        """
        stat, num_asleep = Path(f"/proc/{self.process.pid}/stat"), 0
        while num_asleep < 5:
            time.sleep(0.05)
            state = stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else "S"
            num_asleep = num_asleep + 1 if state == "S" else 0

    def modes(self) -> list:
        """The settings of the terminal, as `stty -a` shows them."""
        return termios.tcgetattr(self._ours)

    def end(self) -> int:
        """The exit code of the program, which ends by itself now."""
        return self.process.wait(timeout=20)
