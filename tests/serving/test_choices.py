"""Several replies as one stream, and how they are written."""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from nanochat_core.inference.requests import Request, TokenLogprob
from nanochat_core.inference.streaming import Piece
from nanochat_core.serving.answering import until_gone
from nanochat_core.serving.choices import Choice, deltas_of
from nanochat_core.serving.completions import ChatWriter, Origin, TextWriter
from nanochat_core.serving.loaded import Delta
from nanochat_core.serving.problems import FailedError, WithdrawnError
from nanochat_core.serving.requests import Question
from tests.inference.scripted import byte_tokenizer

TOKENIZER = byte_tokenizer()
ORIGIN = Origin("demo", "rl/0123456789ab", TOKENIZER)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def delta(text: str = "", *, end: bool = False, kind: Any = "text") -> Delta:
    """A token for each byte of a text."""
    pieces = (Piece(kind, text),) if text else ()
    logprobs = tuple(TokenLogprob(byte, -0.5, ((byte, -0.5), (0, -9.0))) for byte in text.encode())
    return Delta(pieces, logprobs, len(logprobs), "stop" if end else None)


class Tape:
    """A stream of a reply that says what it was given, when it is told to go on."""

    def __init__(self, *deltas: Delta | Exception) -> None:
        self.rest, self.num_looks = list(deltas), 0
        self.may_go_on = asyncio.Semaphore(100)

    def __aiter__(self) -> "Tape":
        return self

    async def __anext__(self) -> Delta:
        self.num_looks += 1
        await self.may_go_on.acquire()
        if not self.rest:
            raise StopAsyncIteration
        following = self.rest.pop(0)
        if isinstance(following, Exception):
            raise following
        return following


async def all_of(tapes: Sequence[Tape]) -> list[tuple[int, Delta]]:
    return [found async for found in deltas_of(tapes)]  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_every_delta_comes_once_with_its_index_and_in_the_order_of_its_reply(number: int) -> None:
    async def merged() -> list[tuple[int, Delta]]:
        return await all_of(
            [Tape(*map(delta, "abc"), delta(str(index), end=True)) for index in range(number)]
        )

    found = run(merged())
    for index in range(number):
        texts = [d.pieces[0].text for i, d in found if i == index]
        assert texts == ["a", "b", "c", str(index)]
    assert len(found) == 4 * number


def test_a_reply_that_waits_holds_up_no_other() -> None:
    async def merged() -> list[int]:
        slow, fast = Tape(delta("s", end=True)), Tape(delta("f"), delta("f", end=True))
        slow.may_go_on = asyncio.Semaphore(0)
        order = []
        async for index, _ in deltas_of([slow, fast]):  # type: ignore[list-item]
            order.append(index)
            if order == [1, 1]:
                slow.may_go_on.release()
        return order

    assert run(merged()) == [1, 1, 0]


def test_a_reader_that_pauses_has_one_delta_of_each_taken_ahead() -> None:
    async def paused() -> list[int]:
        tapes = [Tape(*[delta("x")] * 50, delta(end=True)) for _ in range(3)]
        deltas = deltas_of(tapes)  # type: ignore[arg-type]
        await anext(deltas)
        for _ in range(20):
            await asyncio.sleep(0)
        await deltas.aclose()
        return [tape.num_looks for tape in tapes]

    assert max(run(paused())) <= 2


def test_an_error_in_one_ends_all_and_leaves_nothing_behind(
    recwarn: pytest.WarningsRecorder,
) -> None:
    async def failing() -> int:
        tapes = [Tape(delta("a"), FailedError("gone")) for _ in range(3)]
        with pytest.raises(FailedError, match="gone"):
            await all_of(tapes)
        return len(asyncio.all_tasks()) - 1

    assert run(failing()) == 0
    assert not recwarn.list


def test_work_ends_when_its_client_leaves_and_the_watch_when_the_work_is_done() -> None:
    async def receive_leaving() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def receive_nothing() -> dict[str, Any]:
        return await asyncio.get_running_loop().create_future()

    async def work(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    async def both() -> tuple[str, int]:
        with pytest.raises(WithdrawnError):
            await until_gone(work(60.0), receive_leaving)
        result = await until_gone(work(0.0), receive_nothing)
        return result, len(asyncio.all_tasks()) - 1

    assert run(both()) == ("done", 0)


def question(number: int = 1, **fields: Any) -> Question:
    asked = Request(prompt=(1, 2), num_logprobs=fields.pop("num_logprobs", None))
    return Question(
        **{
            "prompts": ((1, 2),),
            "requests": (asked,) * number,
            "is_streamed": True,
            "wants_usage": False,
            **fields,
        }
    )


REPLY = (
    *(delta("The sum "), delta("6*7", kind="python"), delta("42", kind="python_output")),
    *(delta('is 42 \U0001f600\u2028 "\\'), delta(end=True)),
)


def events_of(text: str) -> list[dict[str, Any]]:
    *events, rest = text.split("\n\n")
    assert rest == ""
    return [json.loads(event.removeprefix("data: ")) for event in events]


def streamed(writer: ChatWriter | TextWriter, number: int) -> tuple[list[Any], list[Choice]]:
    """The choices of all events, and what a whole answer is made of."""
    text, choices = writer.opening(), [Choice() for _ in range(number)]
    for one in REPLY:
        for index in range(number):
            choices[index].add(one)
            text += writer.delta(index, one)
    events = events_of(text)
    assert all(len(event["choices"]) == 1 for event in events)
    return [event["choices"][0] for event in events], choices


@pytest.mark.parametrize("num_logprobs", [None, 2])
def test_the_events_of_a_chat_add_up_to_the_whole_answer(num_logprobs: int | None) -> None:
    asked = question(2, num_logprobs=num_logprobs)
    events, choices = streamed(ChatWriter(ORIGIN, asked), 2)
    whole = ChatWriter(ORIGIN, asked).whole(choices)
    for index, choice in enumerate(whole["choices"]):
        own = [event for event in events if event["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(event["delta"].get("content", "") for event in own)
        assert text == choice["message"]["content"] == 'The sum is 42 \U0001f600\u2028 "\\'
        parts = [part for event in own for part in event.get("nanochat_parts", ())]
        assert parts == [part for part in choice["nanochat_parts"] if part["kind"] != "text"]
        assert [event["finish_reason"] for event in own] == [None] * (len(own) - 1) + ["stop"]
        told = [e for event in own if event["logprobs"] for e in event["logprobs"]["content"]]
        assert told == (choice["logprobs"] or {"content": []})["content"]
        assert len(told) == (choices[0].num_tokens if num_logprobs else 0)
    assert whole["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 2 * choices[0].num_tokens,
        "total_tokens": 2 + 2 * choices[0].num_tokens,
    }


@pytest.mark.parametrize("num_logprobs", [None, 2])
def test_the_events_of_a_completion_add_up_to_the_whole_answer(num_logprobs: int | None) -> None:
    asked = question(2, num_logprobs=num_logprobs, echoes=("One", "Two"))
    events, choices = streamed(TextWriter(ORIGIN, asked), 2)
    whole = TextWriter(ORIGIN, asked).whole(choices)
    for index, choice in enumerate(whole["choices"]):
        own = [event for event in events if event["index"] == index]
        assert "".join(event["text"] for event in own) == choice["text"]
        assert choice["text"].startswith(("One", "Two")[index] + "The sum is 42")
        if num_logprobs is None:
            assert choice["logprobs"] is None
            continue
        for name, values in choice["logprobs"].items():
            joined = [v for event in own if event["logprobs"] for v in event["logprobs"][name]]
            assert joined == values
            assert len(values) == choices[0].num_tokens


def test_usage_comes_in_an_event_of_its_own_only_if_asked_for() -> None:
    choices = [Choice(num_tokens=3)]
    (plain,) = events_of(ChatWriter(ORIGIN, question()).opening())
    assert "usage" not in plain
    assert plain["nanochat_dropped_messages"] == 0
    writer = ChatWriter(ORIGIN, question(wants_usage=True, num_dropped_messages=4))
    opening, last = events_of(writer.opening() + writer.usage(choices))
    assert (opening["usage"], opening["nanochat_dropped_messages"]) == (None, 4)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 5)
    assert opening["id"] == last["id"]
    assert (last["model"], last["system_fingerprint"]) == ("demo", "rl/0123456789ab")


def test_tokens_are_named_so_that_no_two_are_alike() -> None:
    bos = TOKENIZER.bos_id
    told = [TokenLogprob(0xF0, -1.0, ((0xF1, float("-inf")),)), TokenLogprob(bos, -2.0)]
    choice = Choice(logprobs=told, finish_reason="stop")
    chat = ChatWriter(ORIGIN, question(num_logprobs=1)).whole([choice])["choices"][0]
    first, second = chat["logprobs"]["content"]
    assert (first["token"], first["bytes"]) == ("bytes:\\xf0", [0xF0])
    assert first["top_logprobs"][0] == {"token": "bytes:\\xf1", "logprob": -9999.0, "bytes": [0xF1]}
    assert (second["token"], second["bytes"]) == ("<|bos|>", None)
    text = TextWriter(ORIGIN, question(num_logprobs=1)).whole([choice])["choices"][0]["logprobs"]
    assert text["top_logprobs"][0] == {"bytes:\\xf1": -9999.0, "bytes:\\xf0": -1.0}
    json.dumps(chat, allow_nan=False)


def test_offsets_of_tokens_count_characters_of_the_text() -> None:
    choice = Choice()
    choice.add(delta("a\u00e9b"))
    told = TextWriter(ORIGIN, question(num_logprobs=0)).whole([choice])["choices"][0]["logprobs"]
    # The two bytes of one character both begin after the first.
    assert told["text_offset"] == [0, 1, 1, 2]
    assert told["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "b"]
