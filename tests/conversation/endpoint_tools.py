"""An endpoint on loopback that says what a test tells it to, faults included."""

import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from flows.data_identity import Wish, ask, write
from nanochat_core.conversation.chat_endpoint import AskPolicy, Endpoint
from nanochat_core.conversation.made_identity import FactSheet
from nanochat_core.conversation.types import Conversation

NAME = "Ada"
LETTERS = "abcdefghijklmnoprstuvwyz"
QUICK = AskPolicy(first_wait_seconds=0.01, read_seconds=10.0, spread_seconds=0.02)
KEY = "sk-not-to-be-seen"


@dataclass(frozen=True)
class Answer:
    """What is sent back; `cut` bytes of the body are announced and never come."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0


@dataclass
class Asked:
    """One request as the endpoint has seen it."""

    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def number(self) -> int:
        """Which conversation was asked for, from the words of the request."""
        match = re.search(r"Conversation (\d+)\.", self.body["messages"][-1]["content"])
        assert match is not None
        return int(match[1]) - 1


@dataclass
class EndpointServer:
    """What was asked so far, and where it listens."""

    url: str
    asked: list[Asked]

    @property
    def numbers(self) -> list[int]:
        """The conversations that were asked for, in order."""
        return [asked.number for asked in self.asked]


def reply(text: str, finish_reason: str = "stop") -> Answer:
    """A chat completion that says this."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Answer(json.dumps({"object": "chat.completion", "choices": [choice]}).encode())


def refusal(status: int, message: str, **headers: str) -> Answer:
    """An error as the API says it."""
    body = json.dumps({"error": {"message": message}}).encode()
    return Answer(body, status, {name.replace("_", "-"): text for name, text in headers.items()})


def talk(*texts: str) -> str:
    """Messages of user and assistant in turn, as a model would write them."""
    roles = ("user", "assistant")
    return json.dumps([{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)])


def new_talk(number: int) -> Answer:
    """A conversation that is like no other number's, and true of a model called Ada."""
    rng = random.Random(number)
    words = ["".join(rng.choices(LETTERS, k=6)) for _ in range(24)]
    question, answer = " ".join(words[:12]), " ".join(words[12:])
    return reply(talk(f"Who are you, {question}?", f"My name is {NAME}. {answer}."))


def said_by(answer: Answer) -> str:
    """The text of an answer of `reply`."""
    text: str = json.loads(answer.body)["choices"][0]["message"]["content"]
    return text


def in_turn(*answers: Answer) -> Callable[[Asked, int], Answer]:
    """These answers first, then a good one for whatever is asked."""

    def answer(asked: Asked, place: int) -> Answer:
        return answers[place] if place < len(answers) else new_talk(asked.number)

    return answer


GOOD = talk("Who might you be?", "I am called Ada, and I like questions.")


@contextmanager
def endpoint(answer: Callable[[Asked, int], Answer]) -> Iterator[EndpointServer]:
    """A server that answers request after request; it is told how many there were before."""
    asked: list[Asked] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            one = Asked(json.loads(self.rfile.read(length)), dict(self.headers))
            with lock:
                asked.append(one)
                place = len(asked) - 1
            told = answer(one, place)
            self.send_response(told.status)
            self.send_header("Content-Length", str(len(told.body) + told.cut))
            for name, text in told.headers.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, *_: object) -> None:
            """Say nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield EndpointServer(f"http://127.0.0.1:{server.server_port}/v1", asked)
        finally:
            server.shutdown()
            thread.join()


def collect(
    server: EndpointServer,
    folder: Path,
    sheet: FactSheet,
    count: int,
    *,
    threads: int = 1,
    overwrite: bool = False,
    **fields: object,
) -> list[Conversation]:
    """What the command does for an endpoint, one request at a time and with short waits."""
    wish = Wish(folder / "a.jsonl", count, 7, overwrite)
    asked = Endpoint(server.url, "writer", KEY, **fields)  # type: ignore[arg-type]
    conversations = ask(wish, sheet, asked, QUICK, num_threads=threads)
    write(wish, conversations)
    return conversations


def journal_records(folder: Path) -> list[dict[str, object]]:
    """What became of each number, without the head."""
    return [json.loads(line) for line in (folder / "a.jsonl.asked").read_text().splitlines()[1:]]
