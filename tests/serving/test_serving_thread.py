"""The engine's thread: order, a full queue, clients that leave, replies that fail, the end."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch
from serving_tools import LAUGH, YES, make_engine

from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.sampler import GREEDY
from nanochat_core.serving.engine_thread import EngineThread, Finished, Job
from nanochat_core.serving.problems import BusyError, FailedError, StoppingError, WithdrawnError
from nanochat_core.serving.requests import Question

ENDLESS = 4096
Body = Callable[[EngineThread], Coroutine[Any, Any, None]]


def run(body: Body, engine: InferenceEngine, max_waiting: int = 2) -> None:
    thread = EngineThread(engine, max_waiting)
    thread.start()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        asyncio.run(asyncio.wait_for(body(thread), 20))
    finally:
        thread.stop()
        thread.join()
        torch.set_num_threads(before)
    assert not thread.is_alive


def laughing() -> InferenceEngine:
    return make_engine(*LAUGH, sequence_len=1000)


def question(engine: InferenceEngine, max_tokens: int) -> Question:
    start = engine.tokenizer.special_id("assistant_start")
    return Question((start,), GREEDY, max_tokens, (), 0)


def submitted(thread: EngineThread, max_tokens: int = ENDLESS) -> Job:
    job = Job(question(thread.engine, max_tokens))
    thread.submit(job)
    return job


async def text_of(job: Job) -> str:
    return "".join([event.text async for event in job.events() if not isinstance(event, Finished)])


def test_replies_come_in_the_order_of_their_questions() -> None:
    async def body(thread: EngineThread) -> None:
        jobs = [submitted(thread, n) for n in (3, 1, 2)]
        assert [await text_of(job) for job in jobs] == ["hah", "h", "ha"]

    run(body, laughing())


def test_a_full_queue_refuses_and_a_waiting_one_that_leaves_makes_room() -> None:
    async def body(thread: EngineThread) -> None:
        running = submitted(thread)
        await anext(running.events())
        waiting = [submitted(thread, 1) for _ in range(2)]
        with pytest.raises(BusyError, match="2 requests"):
            submitted(thread)
        assert (thread.num_running, thread.num_waiting) == (1, 2)
        thread.withdraw(waiting[0])
        with pytest.raises(WithdrawnError):
            await text_of(waiting[0])
        last = submitted(thread, 1)
        thread.withdraw(running)
        assert [await text_of(waiting[1]), await text_of(last)] == ["h", "h"]

    run(body, laughing())


def test_a_client_that_leaves_frees_the_engine_at_the_next_token() -> None:
    async def body(thread: EngineThread) -> None:
        first = submitted(thread)
        await anext(first.events())
        thread.withdraw(first)
        assert await text_of(submitted(thread, 2)) == "ha"
        with pytest.raises(WithdrawnError):
            # Far from the 4096 that it would have had.
            assert len(await text_of(first)) < 1000

    run(body, laughing())


def test_a_reply_that_fails_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def body(thread: EngineThread) -> None:
        # No prompt of a checked request is empty; the engine refuses it after the queue.
        broken = Job(Question((), GREEDY, 5, (), 0))
        thread.submit(broken)
        with pytest.raises(FailedError, match="log"):
            await text_of(broken)
        assert await text_of(submitted(thread, 9)) == "yes"

    run(body, make_engine(*YES))
    assert "a reply failed" in caplog.text
    assert "a prompt of 0 tokens" in caplog.text


def test_the_end_ends_everybody_and_takes_nobody() -> None:
    async def body(thread: EngineThread) -> None:
        jobs = [submitted(thread), submitted(thread)]
        await anext(jobs[0].events())
        thread.stop()
        for job in jobs:
            with pytest.raises(StoppingError):
                await text_of(job)
        with pytest.raises(StoppingError):
            submitted(thread)

    run(body, laughing())
