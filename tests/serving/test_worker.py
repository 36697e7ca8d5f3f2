"""The engine's end of the pipe, without a pipe."""

import io
import os
import threading
from collections import defaultdict
from pathlib import Path

import pytest

from nanochat_core.inference.finding import FoundModel
from nanochat_core.inference.streaming import Piece
from nanochat_core.serving.pool import worker_arguments
from nanochat_core.serving.wire import Cancel, Command, Event, Step, Submit, encode
from nanochat_core.serving.worker import (
    MAX_FAILED_STEPS,
    VISIBLE_GPUS,
    Commands,
    Worker,
    parse_arguments,
    see_one_gpu,
)
from tests.serving.pool_tools import (
    LAUGH,
    NO_TOKEN,
    START,
    SUM,
    drawn,
    make_engine,
    reply_of,
    request,
    settings_of,
)


def asked(worker: Worker, *commands: Command) -> Step:
    for command in commands:
        worker.take(command)
    return worker.step()


def events_of(worker: Worker) -> dict[int, list[Event]]:
    """All that is still to come, by number."""
    events = defaultdict(list)
    while worker.engine.has_work:
        for event in worker.step().events:
            events[event.number].append(event)
    return events


def laughing(num_rows: int = 4) -> Worker:
    return Worker(make_engine(*LAUGH, num_rows=num_rows, sequence_len=1000))


def test_replies_are_those_of_the_engine_alone() -> None:
    requests = [drawn(20, seed=5), request(20), drawn(9, seed=6), request(1)]
    worker = Worker(make_engine(*SUM))
    for number, one in enumerate(requests):
        worker.take(Submit(number, one))
    events = events_of(worker)
    for number, one in enumerate(requests):
        pieces, num_tokens, reason = reply_of(make_engine(*SUM), one)
        assert [piece for event in events[number] for piece in event.shown] == pieces
        assert sum(event.num_tokens for event in events[number]) == num_tokens
        assert events[number][-1].finish_reason == reason


def test_a_tool_call_comes_in_pieces_of_its_own_kind() -> None:
    worker = Worker(make_engine(*SUM))
    worker.take(Submit(1, request(20)))
    pieces = [piece for event in events_of(worker)[1] for piece in event.shown]
    assert Piece("python_output", "4") in pieces
    assert "".join(piece.text for piece in pieces) == "6*742ok"


def test_a_cancelled_reply_frees_its_row_for_the_next_step() -> None:
    worker = laughing(num_rows=1)
    asked(worker, Submit(1, request()))
    step = asked(worker, Submit(2, request()))
    assert [event.number for event in step.events] == [1]
    assert (step.stats.num_running, step.stats.num_waiting) == (1, 1)
    step = asked(worker, Cancel(1))
    assert [event.number for event in step.events] == [2]
    assert (step.gone, step.stats.num_running, step.stats.num_waiting) == ((1,), 1, 0)


def test_cancelling_what_is_over_or_never_was_is_no_error() -> None:
    worker = laughing()
    worker.take(Submit(1, request(2)))
    events_of(worker)
    assert asked(worker, Cancel(1), Cancel(7)).gone == ()


def test_a_request_that_cannot_work_is_refused_alone() -> None:
    worker = laughing()
    step = asked(worker, Submit(1, request(3)), Submit(2, request(3, prompt=())))
    assert [event.number for event in step.events] == [1]
    (failure,) = step.failures
    assert (failure.number, failure.is_of_request) == (2, True)
    assert "a prompt of 0 tokens" in failure.message


def test_a_failing_step_ends_those_that_run_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = laughing(num_rows=2)
    asked(worker, Submit(1, request(50)))
    step = asked(worker, Submit(2, request(50, prompt=(START, NO_TOKEN))), Submit(3, request(5)))
    assert [failure.number for failure in step.failures] == [1, 2]
    assert not any(failure.is_of_request for failure in step.failures)
    assert (step.events, step.stats.num_running) == ((), 0)
    assert "a step failed" in caplog.text
    events = events_of(worker)
    assert list(events) == [3]
    assert events[3][-1].finish_reason == "length"


def test_an_engine_that_only_fails_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    worker = laughing()
    for number in range(MAX_FAILED_STEPS - 1):
        assert asked(worker, Submit(number, request(prompt=(NO_TOKEN,)))).failures
    with pytest.raises(IndexError):
        asked(worker, Submit(9, request(prompt=(NO_TOKEN,))))


def test_one_good_step_between_failures_is_enough_to_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = laughing()
    for number in range(2 * MAX_FAILED_STEPS):
        prompt = (NO_TOKEN,) if number % 2 else (START,)
        step = asked(worker, Submit(number, request(1, prompt=prompt)))
        assert bool(step.failures) == bool(number % 2)


def test_commands_are_heard_in_their_order_and_their_end_is_told() -> None:
    ended = threading.Event()
    said = [Submit(1, request(3)), Cancel(1), Submit(2, request(4))]
    commands = Commands(io.BytesIO(b"".join(map(encode, said))), ended.set)
    assert ended.wait(10)
    assert list(commands.pending(wait=True)) == said
    assert list(commands.pending(wait=False)) == []


@pytest.mark.parametrize(("visible", "seen"), [("", "1"), ("3,5,7", "5"), ("GPU-a,GPU-b", "GPU-b")])
def test_a_replica_sees_one_of_the_gpus_that_the_server_may_use(
    visible: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE_GPUS, visible)
    see_one_gpu(1)
    assert os.environ[VISIBLE_GPUS] == seen


def test_a_worker_understands_what_the_pool_tells_it() -> None:
    settings = settings_of("x", num_rows=7, is_exact=True)
    found = FoundModel("sft", Path("a model"), Path("a tokenizer"))
    read = parse_arguments(worker_arguments(settings, found, gpu=2))
    assert (read.model, read.tokenizer, read.device) == (found.model, found.tokenizer, "cpu")
    assert (read.rows, read.exact, read.gpu) == (7, True, 2)
    read = parse_arguments(worker_arguments(settings_of("x"), found, gpu=None))
    assert (read.exact, read.gpu) == (False, None)
