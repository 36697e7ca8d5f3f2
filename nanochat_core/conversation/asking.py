"""Conversations about a model that another model writes, asked for over a chat endpoint.

Every number stands for one conversation and its plan. What comes back is accepted or refused, and
either is one line of a journal, on disk before the next is asked for: a killed collection goes on
where it was. Numbers that are refused are replaced by further ones.
"""

import json
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count as numbers_from
from pathlib import Path
from typing import IO, Any

from nanochat_core.conversation.answers import normalise
from nanochat_core.conversation.chat_endpoint import ChatClient, Reply, Stopped
from nanochat_core.conversation.claims import contradiction
from nanochat_core.conversation.diversity import Earlier, draw_plan, instructions
from nanochat_core.conversation.identity import held_out_questions
from nanochat_core.conversation.made_identity import FactSheet
from nanochat_core.conversation.reading import conversation_of
from nanochat_core.conversation.types import Conversation, assistant, user
from nanochat_core.errors import ConfigError, DataError

FORMAT = 1
MAX_CHARACTERS = 4_000
"""Of one message; a small model reads a few hundred tokens."""
MAX_EXCHANGES = 8
PATIENCE = 40
"""So many more than four times the wanted number may be refused in one run."""
SHOWN = 160
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)


class Refused(Exception):
    """A reply that is not taken: why, in a word or two that are counted, and what was wrong."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(f"{why}: {detail}")
        self.why, self.detail = why, detail


@dataclass
class Tally:
    """How a collection stands; `refused` of this run and of those before, by reason."""

    wanted: int
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    given: int = 0
    """Accepted by runs before this one."""


def read_conversation(reply: Reply) -> Conversation:
    """The conversation in a reply that was to be a JSON array. Raises Refused."""
    if not reply.is_whole:
        raise Refused("cut off", "the reply has reached the limit of tokens")
    given = _first_json(_THOUGHTS.sub("", reply.text))
    if given is None:
        raise Refused("no JSON", reply.text[:SHOWN])
    try:
        messages = conversation_of(given).messages
    except DataError as error:
        raise Refused("malformed", str(error)) from None
    if messages[0].role == "system" or messages[-1].role != "assistant":
        raise Refused("malformed", "it has to begin with the user and end with the assistant")
    if any(part.kind != "text" or "<|" in part.text for m in messages for part in m.parts):
        raise Refused("malformed", "a message is not plain text")
    longest = max(len(message.text) for message in messages)
    if longest > MAX_CHARACTERS or len(messages) > 2 * MAX_EXCHANGES:
        raise Refused("too long", f"{len(messages)} messages of up to {longest:,} characters")
    return _of_texts([message.text.strip() for message in messages])


def check_conversation(sheet: FactSheet, conversation: Conversation) -> None:
    """Refuse what contradicts the sheet, and questions that models are examined with."""
    if wrong := contradiction(sheet, conversation):
        why, _, detail = wrong.partition(": ")
        raise Refused(f"wrong {why}" if why != "other model" else why, detail)
    for message in conversation.turns[::2]:
        asked = f" {normalise(message.text)} "
        for held_out in held_out_questions(sheet.model_facts()):
            if f" {normalise(held_out.question)} " in asked:
                raise Refused("held-out question", message.text[:SHOWN])


class Journal:
    """What became of each number, one line each, on disk before `append` returns.

    Its first line says which facts and seed the conversations are for. A line that a kill has cut
    off is dropped when the journal is opened again.
    """

    def __init__(self, path: Path, sheet: FactSheet, seed: int) -> None:
        self.path, self.conversations = path, dict[int, Conversation]()
        self.refused: Counter[str] = Counter()
        self.numbers: set[int] = set()
        self._file: IO[bytes] = path.open("a+b")
        try:
            self._open({"format": FORMAT, "seed": seed, "facts": sheet.model_dump(mode="json")})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def accept(self, number: int, conversation: Conversation, model: str) -> None:
        """Record a conversation that was taken."""
        texts = [message.text for message in conversation.messages]
        self._append({"number": number, "model": model, "texts": texts})
        self._took(number, conversation)

    def refuse(self, number: int, refused: Refused, model: str) -> None:
        """Record that this number gave nothing."""
        record = {"number": number, "model": model, "refused": refused.why, "for": refused.detail}
        self._append(record)
        self._dropped(number, refused.why)

    def _open(self, head: dict[str, Any]) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        if not whole:
            self._append(head)
            return
        for place, line in enumerate(whole.splitlines()):
            try:
                self._take_in(json.loads(line), head if place == 0 else None)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.path}, line {place + 1} is damaged ({error}); remove that line, or "
                    "begin anew with --overwrite"
                ) from error

    def _take_in(self, record: dict[str, Any], head: dict[str, Any] | None) -> None:
        if head is not None:
            if record != head:
                raise ConfigError(
                    f"{self.path} was begun with another {_first_difference(record, head)}; give "
                    "the same again, another --output, or --overwrite to begin anew"
                )
        elif "refused" in record:
            self._dropped(record["number"], record["refused"])
        else:
            self._took(record["number"], _of_texts(record["texts"]))

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False)
        # A reply may hold half a surrogate pair, which has no UTF-8 form.
        self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _took(self, number: int, conversation: Conversation) -> None:
        self.conversations[number] = conversation
        self.numbers.add(number)

    def _dropped(self, number: int, why: str) -> None:
        self.refused[why] += 1
        self.numbers.add(number)


class Collection:
    """Asks from several threads until `wanted` conversations are accepted."""

    def __init__(
        self, sheet: FactSheet, seed: int, wanted: int, journal: Journal, *, model: str
    ) -> None:
        self._sheet, self._seed, self._journal, self._model = sheet, seed, journal, model
        self._earlier = Earlier()
        for conversation in journal.conversations.values():
            self._earlier.add(conversation)
        given = len(journal.conversations)
        self.tally = Tally(wanted, given, Counter(journal.refused), given)
        self._most_refused = journal.refused.total() + PATIENCE + 4 * (wanted - given)
        self._left = (number for number in numbers_from() if number not in journal.numbers)
        self._num_asked_now = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    def collect(
        self,
        client: ChatClient,
        num_threads: int,
        stop: threading.Event,
        progress: Callable[[Tally], None],
    ) -> None:
        """Fill the journal; the first failure of any thread ends all, and is raised here.

        `stop` is what the client was made with: it is set when this ends.
        """
        arguments = (client, stop, progress)
        threads = [
            threading.Thread(target=self._work, args=arguments, daemon=True)
            for _ in range(num_threads)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                # A join without end would not let Ctrl-C through on every system.
                while thread.is_alive() and not stop.is_set():
                    thread.join(0.05)
        finally:
            with self._changed:
                stop.set()
                self._changed.notify_all()
        if self._failure is not None:
            raise self._failure

    def _work(
        self, client: ChatClient, stop: threading.Event, progress: Callable[[Tally], None]
    ) -> None:
        try:
            while (number := self._next_number(stop)) is not None:
                plan = draw_plan(self._sheet, self._seed, number)
                drawn = random.Random(f"{self._seed}/{number}").getrandbits(31)
                reply = client.ask(instructions(self._sheet, plan), drawn)
                self._settle(number, reply, stop, progress)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  raised again by the thread that waits
            with self._changed:
                # What fails after the end fails because of it.
                if not stop.is_set():
                    self._failure = error
                stop.set()

    def _next_number(self, stop: threading.Event) -> int | None:
        """A number that nobody asks for; None when there is nothing left to do."""
        with self._changed:
            while not stop.is_set() and self.tally.accepted < self.tally.wanted:
                if self.tally.accepted + self._num_asked_now < self.tally.wanted:
                    self._num_asked_now += 1
                    return next(self._left)
                self._changed.wait(0.2)
        return None

    def _settle(
        self,
        number: int,
        reply: Reply,
        stop: threading.Event,
        progress: Callable[[Tally], None],
    ) -> None:
        with self._changed:
            if stop.is_set():
                return
            try:
                conversation = self._judge(reply)
            except Refused as refused:
                self._journal.refuse(number, refused, self._model)
                self.tally.refused[refused.why] += 1
                self._check_patience(refused)
            else:
                self._journal.accept(number, conversation, self._model)
                self._earlier.add(conversation)
                self.tally.accepted += 1
            self._num_asked_now -= 1
            self._changed.notify_all()
            progress(self.tally)

    def _judge(self, reply: Reply) -> Conversation:
        conversation = read_conversation(reply)
        check_conversation(self._sheet, conversation)
        if again := self._earlier.says_again(conversation):
            raise Refused(again, conversation.turns[0].text[:SHOWN])
        return conversation

    def _check_patience(self, last: Refused) -> None:
        if self.tally.refused.total() <= self._most_refused:
            return
        raise DataError(
            f"{self.tally.accepted} of {self.tally.wanted} conversations were accepted and "
            f"{self.tally.refused.total()} refused ({counted_reasons(self.tally.refused)}), the "
            f"last one for: {last.detail}. What was accepted is kept. Try a stronger model, more "
            "background in --facts, or a smaller --count"
        )


def counted_reasons(refused: Counter[str]) -> str:
    """`near-duplicate 8, no JSON 4`, the most frequent first."""
    return ", ".join(f"{why} {number}" for why, number in refused.most_common())


def _of_texts(texts: Sequence[str]) -> Conversation:
    """User and assistant in turn."""
    said = tuple((user, assistant)[place % 2](text) for place, text in enumerate(texts))
    return Conversation(messages=said)


def _first_json(text: str) -> Any:
    """The first array of objects in a text; fences, words and an object around it do not matter."""
    start = re.search(r"\[(?=\s*\{)", text)
    try:
        return None if start is None else json.JSONDecoder().raw_decode(text, start.start())[0]
    except (ValueError, RecursionError):
        return None


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    for name in ("format", "seed"):
        if before.get(name) != now[name]:
            return f"{name} ({before.get(name)}, now {now[name]})"
    facts = before.get("facts")
    facts = facts if isinstance(facts, dict) else {}
    return next(
        f"{name} ({facts.get(name)!r}, now {value!r})"
        for name, value in {**dict.fromkeys(facts), **now["facts"]}.items()
        if facts.get(name) != value
    )
