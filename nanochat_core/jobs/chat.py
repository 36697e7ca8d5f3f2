"""Talk to a chat model in a terminal: `python -m nanochat_core.jobs.chat --model … --tokenizer …`.

One reply to `-p TEXT` or to a text from a pipe; else a conversation, in which Ctrl-C stops a reply
and `/quit` or Ctrl-D ends. Modules that need torch are imported after the arguments are read.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from nanochat_core.conversation.types import Conversation, Message, Part, user
from nanochat_core.errors import ConfigError, NanochatError

if TYPE_CHECKING:
    from nanochat_core.inference.engine import InferenceEngine
    from nanochat_core.inference.sampler import SamplingSettings
    from nanochat_core.inference.streaming import Piece

EXIT_USER_ERROR = 2
MAX_PROMPT_TOKENS = 2048
HINT = "Ctrl-C stops a reply; /quit or Ctrl-D ends."


class Chat:
    """A conversation with a model: what was said so far, and how replies are sampled."""

    def __init__(
        self, engine: InferenceEngine, settings: SamplingSettings, max_new_tokens: int
    ) -> None:
        self.engine, self.settings, self.max_new_tokens = engine, settings, max_new_tokens
        self.messages: list[Message] = []
        self.max_prompt_tokens = min(MAX_PROMPT_TOKENS, engine.model.max_positions // 2)

    def reply(self, text: str) -> Iterator[Piece]:
        """Pieces of the answer as they come; what came before an interruption is remembered."""
        from nanochat_core.inference.streaming import ReplyDecoder
        from nanochat_core.tokenizer.chat_format import parse_reply, render_prompt, trim_history

        tokenizer, limit = self.engine.tokenizer, self.max_prompt_tokens
        asked = Conversation(messages=(*self.messages, user(text)))
        asked = trim_history(tokenizer, asked, max_tokens=limit)
        tokens = self.engine.generate_ids(
            render_prompt(tokenizer, asked, max_tokens=limit),
            self.settings,
            max_new_tokens=self.max_new_tokens,
        )
        decoder, reply = ReplyDecoder(tokenizer), []
        try:
            for token in tokens:
                reply.append(token)
                piece = decoder.feed(token)
                if piece is not None:
                    yield piece
            rest = decoder.finish()
            if rest is not None:
                yield rest
        finally:
            parts = parse_reply(tokenizer, reply) or (Part(text=""),)
            self.messages = [*asked.messages, Message(role="assistant", parts=parts)]


def show(pieces: Iterable[Piece], out: TextIO) -> None:
    """Write pieces as they come; a tool call reads `[12+30 = 42]`."""
    kind = "text"
    try:
        for piece in pieces:
            if piece.kind != kind:
                out.write(_between(kind, piece.kind))
                kind = piece.kind
            out.write(piece.text)
            out.flush()
    finally:
        out.write(_between(kind, "text") + "\n")
        out.flush()


def _between(kind: str, following: str) -> str:
    if kind == following:
        return ""
    closing = "]" if kind != "text" and (kind, following) != ("python", "python_output") else ""
    opening = {"text": "", "python": "[", "python_output": " = " if kind == "python" else "[= "}
    return closing + opening[following]


def converse(chat: Chat, out: TextIO) -> None:
    """Read messages and answer them until /quit or the end of the input."""
    with contextlib.suppress(ImportError):  # no such module on Windows
        importlib.import_module("readline")  # gives input() its arrow keys and history
    out.write(HINT + "\n")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            out.write("\n")
            return
        except KeyboardInterrupt:
            out.write(f"\n{HINT}\n")
            continue
        if text == "/quit":
            return
        if not text:
            continue
        pieces = chat.reply(text)
        try:
            show(pieces, out)
        except KeyboardInterrupt:
            out.write("(stopped)\n")
        finally:
            pieces.close()  # type: ignore[attr-defined]


def load_chat(arguments: argparse.Namespace) -> Chat:
    """Load the model; heavy imports happen here, after every argument was checked."""
    from nanochat_core.inference.opening import open_engine
    from nanochat_core.inference.sampler import SamplingSettings

    settings = SamplingSettings(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed
    )
    engine = open_engine(arguments.model, arguments.tokenizer, arguments.device)
    return Chat(engine, settings, arguments.max_new_tokens)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(prog="chat", description="Talk to a chat model.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of its tokenizer")
    parser.add_argument("-p", "--prompt", help="one message; without it, a conversation")
    parser.add_argument("--temperature", type=float, default=0.6, help="0 is greedy (%(default)s)")
    parser.add_argument("--top-k", type=int, default=50, help="0 keeps every token (%(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, help="1 keeps every token")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="of a reply (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parse_arguments(argv)
    message = arguments.prompt
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read()
    try:
        if message is not None and not message.strip():
            raise ConfigError("the message is empty; give -p TEXT or a text through the pipe")
        chat = load_chat(arguments)
        if message is None:
            converse(chat, sys.stdout)
        else:
            show(chat.reply(message.strip()), sys.stdout)
    except NanochatError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader left; pointing stdout elsewhere keeps the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
