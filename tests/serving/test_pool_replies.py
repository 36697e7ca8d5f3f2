"""Replies of an engine that is a process of its own, read in the event loop."""

import asyncio
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from nanochat_core.errors import ConfigError
from nanochat_core.inference.streaming import Piece
from nanochat_core.serving.loaded import LoadedModel, ReplyStream
from nanochat_core.serving.problems import BusyError, FailedError, WithdrawnError
from tests.serving.pool_tools import (
    LAUGH,
    NO_TOKEN,
    SUM,
    Pooled,
    drawn,
    make_engine,
    pooled,
    read_all,
    reply_of,
    request,
    save_by_hand,
    text_of,
    until,
)

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooled]:
    """One engine of four rows before which eight may wait, for all tests here."""
    base: Path = tmp_path_factory.mktemp("by-hand")
    save_by_hand(base, "laugh", *LAUGH, sequence_len=1000)
    save_by_hand(base, "sum", *SUM)
    with pooled(base, "sft/laugh") as found:
        yield found


async def opened(ready: Pooled, name: str = "") -> LoadedModel:
    """The model, with nothing of the last test left."""
    model = await ready.pool.open(name)
    await until(lambda: model.num_open == 0)
    return model


async def first_text(stream: ReplyStream) -> str:
    return text_of([await anext(stream)])


def joined(pieces: list[Piece]) -> list[Piece]:
    runs = groupby(pieces, key=lambda piece: piece.kind)
    return [Piece(kind, "".join(piece.text for piece in run)) for kind, run in runs]


def test_replies_are_those_of_an_engine_in_this_process(ready: Pooled) -> None:
    requests = [drawn(30, seed=3), request(20), drawn(7, seed=4), request(30, stops=("2o",))]
    requests += [drawn(40, seed=seed) for seed in range(3)]
    requests.append(request(20, num_logprobs=2))

    async def body() -> None:
        model = await opened(ready, "sft/sum")
        replies = await asyncio.gather(*map(read_all, model.submit(requests)))
        for one, deltas in zip(requests, replies, strict=True):
            pieces, num_tokens, reason = reply_of(make_engine(*SUM), one)
            assert joined([p for delta in deltas for p in delta.pieces]) == joined(pieces)
            assert sum(delta.num_tokens for delta in deltas) == num_tokens
            assert [delta.finish_reason for delta in deltas[-1:]] == [reason]
        logprobs = [value for delta in replies[-1] for value in delta.logprobs]
        assert len(logprobs) > 5
        assert all(len(value.top) == 2 for value in logprobs)

    ready.run(body())


def test_more_than_may_wait_are_refused_all_or_none(ready: Pooled) -> None:
    async def body() -> None:
        model = await opened(ready)
        with pytest.raises(BusyError, match=r"13 more are too many \(limit 8\)"):
            model.submit([request()] * 13)
        assert model.num_open == 0
        streams = model.submit([request()] * 10)
        assert (model.num_running, model.num_waiting) == (4, 6)
        with pytest.raises(BusyError, match=r"^6 replies of 'sft/laugh' wait already"):
            model.submit([request()] * 3)
        streams += model.submit([request(6), request(6)])
        for stream in streams[:10]:
            stream.cancel()
        texts = [text_of(await read_all(stream)) for stream in streams[10:]]
        assert texts == ["hahaha", "hahaha"]
        await until(lambda: model.num_open == 0)
        assert model.stats.num_running == model.stats.num_waiting == 0

    ready.run(body())


def test_a_cancelled_reply_gives_its_row_to_the_next(ready: Pooled) -> None:
    async def body() -> None:
        model = await opened(ready)
        running = model.submit([request()] * 4)
        assert [await first_text(stream) for stream in running]
        (waiting,) = model.submit([request(4)])
        running[2].cancel()
        running[2].cancel()
        assert text_of(await read_all(waiting)) == "haha"
        with pytest.raises(WithdrawnError):
            await read_all(running[2])
        assert model.num_running == 3
        for stream in running:
            stream.cancel()

    ready.run(body())


def test_a_reader_is_told_of_the_cancellation_that_another_task_made(ready: Pooled) -> None:
    async def body() -> None:
        model = await opened(ready)
        streams = model.submit([request()] * 5)
        reading = asyncio.create_task(read_all(streams[4]))
        await asyncio.sleep(0)
        for stream in streams:
            stream.cancel()
        with pytest.raises(WithdrawnError):
            await reading

    ready.run(body())


def test_a_slow_reader_gets_few_large_deltas_and_all_of_the_text(ready: Pooled) -> None:
    async def body() -> None:
        model = await opened(ready)
        slow, quick = model.submit([request(300), request(300)])
        deltas = await read_all(quick)
        assert len(deltas) > 10
        await until(lambda: model.num_open == 0)
        (whole,) = await read_all(slow)
        assert (text_of([whole]), whole.num_tokens) == ("ha" * 150, 300)
        assert text_of(deltas) == "ha" * 150
        assert len(whole.pieces) == 1
        slow.cancel()
        assert await read_all(slow) == []

    ready.run(body())


def test_a_request_that_cannot_work_fails_alone(ready: Pooled) -> None:
    async def body() -> None:
        model = await opened(ready)
        good, empty = model.submit([request(4), request(4, prompt=())])
        with pytest.raises(ConfigError, match="a prompt of 0 tokens"):
            await read_all(empty)
        assert text_of(await read_all(good)) == "haha"

    ready.run(body())


def test_a_step_that_fails_ends_those_that_run_and_the_engine_goes_on(ready: Pooled) -> None:
    async def body() -> None:
        model = await opened(ready)
        pid = model.links[0].pid
        good, bad = model.submit([request(), request(prompt=(NO_TOKEN,))])
        with pytest.raises(FailedError, match="IndexError"):
            await read_all(bad)
        with pytest.raises(FailedError, match="the server's log says why"):
            await read_all(good)
        (after,) = model.submit([request(4)])
        assert text_of(await read_all(after)) == "haha"
        assert model.links[0].pid == pid

    ready.run(body())


def test_a_long_burst_of_requests_and_cancellations_ends_empty(ready: Pooled) -> None:
    async def body() -> None:
        model = await opened(ready)
        for round_ in range(40):
            streams = model.submit([request()] * 3)
            if round_ % 2:
                await first_text(streams[0])
            for stream in streams:
                stream.cancel()
            await until(lambda: model.num_open <= 6)
        await until(lambda: model.num_open == 0)
        assert model.stats.num_running == model.stats.num_cached_tokens == 0

    ready.run(body())
