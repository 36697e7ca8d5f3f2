"""Clients that each ask, wait for the whole answer, and ask again: a load of constant width.

Request i has the same text, seed and length wherever it is sent, so that two measurements of the
same load can be compared. Clients live in processes of their own and take their time from the
clock of the machine.
"""

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

from nanochat_core.bench.serve_client import Connection, Response, Target, events

PATH = "/v1/chat/completions"
BUSY = 429
MOST_RETRY_SECONDS = 5.0
START_SECONDS = 1.0
"""What processes of clients get to start; those that need longer begin late."""
WORDS = (
    *("time", "day", "man", "way", "life", "hand", "part", "eye"),
    *("place", "work", "week", "case", "point", "home", "room", "water"),
)
"""Short and frequent, so that most tokenizers have a token for each."""
ANSWER_SECONDS = 600.0
"""A server that takes longer for one answer is taken to hang."""


@dataclass(frozen=True)
class Prompts:
    """The text of every request: the given ones in turn, or words drawn for each anew.

    Words differ from request to request because a server may keep what it has read before.
    """

    texts: tuple[str, ...] = ()
    num_words: int = 0

    def text(self, index: int) -> str:
        """The text of a request."""
        if self.texts:
            return self.texts[index % len(self.texts)]
        draw = random.Random(index)
        words: list[str] = []
        while len(words) < self.num_words:
            # All of them before any again: as many words are as many tokens, or nearly.
            words += draw.sample(WORDS, len(WORDS))
        return " ".join(words[: self.num_words])


@dataclass(frozen=True)
class Window:
    """When clients start, from when to when is measured, and until when replies are awaited.

    `num_requests` ends the load instead of `end`, and everything is measured.
    """

    begin: float
    measured: float = -math.inf
    end: float = math.inf
    patience_seconds: float = 60.0
    num_requests: int | None = None

    def allows(self, index: int) -> bool:
        """Whether a client may send this request now."""
        if self.num_requests is not None:
            return index < self.num_requests
        return time.monotonic() < self.end

    def holds(self, moment: float) -> bool:
        """Whether this moment is measured."""
        return self.measured <= moment < self.end


@dataclass(frozen=True)
class Load:
    """What every client asks, and how many there are."""

    num_clients: int
    prompts: Prompts
    max_tokens: int
    model: str = ""
    is_streamed: bool = True
    temperature: float = 0.6
    top_k: int = 50

    def body(self, index: int) -> dict[str, Any]:
        """A request as JSON."""
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": self.prompts.text(index)}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "seed": index,
        }
        body |= {"model": self.model} if self.model else {}
        if self.is_streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body


@dataclass
class Sample:
    """One request. `problem` is empty when it was answered in full; times are the machine's."""

    sent: float
    ended: float
    problem: str = ""
    first: float | None = None
    """When the first text of a stream came."""
    last: float | None = None
    prompt_tokens: int = 0
    reply_tokens: int = 0
    num_measured_tokens: float = 0.0
    """How many of the tokens came while it was measured."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between two arrivals of text."""

    @property
    def seconds_per_token(self) -> float | None:
        """The mean time from one token to the next, without the wait for the first one."""
        if self.first is None or self.last is None or self.reply_tokens < 2:
            return None
        return (self.last - self.first) / (self.reply_tokens - 1)


def sample_of(response: Response, sent: float, window: Window) -> Sample:
    """What an answer tells about the speed of the server."""
    ended = response.parts[-1][0] if response.parts else time.monotonic()
    sample = Sample(sent, ended)
    if response.status != 200:
        sample.problem = f"{response.status} {_code(response.body)}".strip()
    elif response.headers.get("content-type", "").startswith("text/event-stream"):
        _read_stream(response, sample, window)
    else:
        _read_whole(response, sample, window)
    return sample


def _code(body: bytes) -> str:
    """What an error calls itself."""
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(code or "")


def _read_whole(response: Response, sample: Sample, window: Window) -> None:
    """An answer in one piece; its tokens are taken to have come evenly."""
    usage = json.loads(response.body)["usage"]
    sample.prompt_tokens, sample.reply_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    seconds = max(sample.ended - sample.sent, 1e-9)
    inside = min(sample.ended, window.end) - max(sample.sent, window.measured)
    sample.num_measured_tokens = sample.reply_tokens * max(inside, 0.0) / seconds


def _read_stream(response: Response, sample: Sample, window: Window) -> None:
    """A stream. An event may hold several tokens, and only usage says how many there were in all.

    So tokens are spread over the events as the characters are.
    """
    arrivals: list[tuple[float, int]] = []
    is_finished = False
    for when, values in events(response):
        if "error" in values:
            sample.problem = f"in the stream: {values['error'].get('code')}"
            return
        if values.get("usage"):
            sample.prompt_tokens = values["usage"]["prompt_tokens"]
            sample.reply_tokens = values["usage"]["completion_tokens"]
        for choice in values["choices"]:
            is_finished = is_finished or choice["finish_reason"] is not None
            if length := _num_characters(choice):
                arrivals.append((when, length))
    if not is_finished:
        sample.problem = "the stream ended without a finish_reason"
        return
    moments = [when for when, _ in arrivals]
    if moments:
        sample.first, sample.last = moments[0], moments[-1]
        sample.gaps = [b - a for a, b in pairwise(moments)]
        measured = sum(length for when, length in arrivals if window.holds(when))
        whole = sum(length for _, length in arrivals)
        sample.num_measured_tokens = sample.reply_tokens * measured / whole


def _num_characters(choice: dict[str, Any]) -> int:
    """How much a chunk brings, code and tool output included; their text stands beside `delta`."""
    delta = choice["delta"]
    parts = choice.get("nanochat_parts") or delta.get("nanochat_parts") or ()
    return len(delta.get("content") or "") + sum(len(part["text"]) for part in parts)


@dataclass
class Client:
    """One of the clients; `number` tells it from the others."""

    target: Target
    load: Load
    window: Window
    number: int
    samples: list[Sample] = field(default_factory=list)

    async def run(self) -> list[Sample]:
        """Ask until the window says that it is enough."""
        await asyncio.sleep(self.window.begin - time.monotonic())
        index, connection = self.number, None
        while self.window.allows(index):
            sent = time.monotonic()
            try:
                if connection is None or not connection.is_open:
                    connection = await Connection.to(self.target)
                request = self.target.request("POST", PATH, self.load.body(index))
                left = self.window.end + self.window.patience_seconds - sent
                async with asyncio.timeout(min(left, ANSWER_SECONDS)):
                    response = await connection.ask(request)
                self.samples.append(sample_of(response, sent, self.window))
                if response.status == BUSY:
                    await asyncio.sleep(_retry_after(response))
                    continue
            except TimeoutError:
                self._fail(sent, "unfinished")
            except (OSError, ValueError, KeyError) as error:
                self._fail(sent, type(error).__name__)
                # A server that refuses connections must not be asked as fast as it can refuse.
                await asyncio.sleep(0.1)
            index += self.load.num_clients
        if connection is not None:
            connection.abort()
        return self.samples

    def _fail(self, sent: float, problem: str) -> None:
        self.samples.append(Sample(sent, time.monotonic(), problem))


def _retry_after(response: Response) -> float:
    given = response.headers.get("retry-after", "")
    return min(float(given), MOST_RETRY_SECONDS) if given.isdecimal() else 1.0


def run_clients(target: Target, load: Load, window: Window, numbers: Sequence[int]) -> list[Sample]:
    """The clients of these numbers, in this process."""

    async def together() -> list[list[Sample]]:
        clients = [Client(target, load, window, number) for number in numbers]
        return await asyncio.gather(*(client.run() for client in clients))

    return [sample for samples in asyncio.run(together()) for sample in samples]


@contextmanager
def clients_of(
    target: Target, load: Load, window: Window, num_processes: int
) -> Iterator[Callable[[], list[Sample]]]:
    """All clients of a load, in processes of their own, which end with the block.

    What it gives waits for them to be done, and returns everything that they asked.
    """
    shares = [range(i, load.num_clients, num_processes) for i in range(num_processes)]
    # New interpreters, since copies of this one would hold its threads' locks.
    with get_context("spawn").Pool(num_processes) as pool:
        running = pool.starmap_async(
            run_clients, [(target, load, window, share) for share in shares], chunksize=1
        )
        yield lambda: [sample for samples in running.get() for sample in samples]


def problems_of(samples: Sequence[Sample]) -> dict[str, int]:
    """How often each problem came, a full queue excepted."""
    counted = Counter(sample.problem for sample in samples if sample.problem)
    return {name: count for name, count in counted.most_common() if not name.startswith("429")}
