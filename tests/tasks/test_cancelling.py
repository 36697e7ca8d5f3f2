"""A cancel that only the server knows of reaches the process that works."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Running, State

from tasks.cancelling import CancelWatch

ASK_SECONDS = 0.2


@contextmanager
def terminations() -> Iterator[list[int]]:
    """Signals that ask this process to end, as they come."""
    found: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        found.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield found
    finally:
        signal.signal(signal.SIGTERM, before)


def signals_after(state: State[None], seconds: float) -> list[int]:
    """What comes to a flow whose run was given a state behind its back."""
    with terminations() as found:
        with CancelWatch(ASK_SECONDS):
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(flow_run.id, state, force=True)
            deadline = time.monotonic() + seconds
            while not found and time.monotonic() < deadline:
                time.sleep(0.02)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Running(), force=True)
    return found


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("state", [Cancelling(), Cancelled()], ids=lambda state: state.name)
def test_a_run_that_is_cancelled_at_the_server_gets_sigterm(state: State[None]) -> None:
    @flow(name="cancelled", persist_result=False)
    def cancelled() -> list[int]:
        return signals_after(state, 10)

    assert cancelled() == [signal.SIGTERM]


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_is_running_gets_nothing() -> None:
    @flow(name="running", persist_result=False)
    def running() -> list[int]:
        return signals_after(Running(), 1.5)

    assert running() == []


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_a_flow_that_is_cancelled_while_one_inside_of_it_is_watched_gets_one_sigterm() -> None:
    @flow(name="inner", persist_result=False)
    def inner(outer_id: str) -> list[int]:
        with terminations() as found, CancelWatch(ASK_SECONDS):
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(UUID(outer_id), Cancelling(), force=True)
                deadline = time.monotonic() + 10
                while not found and time.monotonic() < deadline:
                    time.sleep(0.02)
                client.set_flow_run_state(UUID(outer_id), Running(), force=True)
            time.sleep(3 * ASK_SECONDS)
        return found

    @flow(name="outer", persist_result=False)
    def outer() -> list[int]:
        with CancelWatch(ASK_SECONDS):
            return inner(str(flow_run.id))

    assert outer() == [signal.SIGTERM]


def test_a_job_by_hand_belongs_to_no_run_and_asks_nobody() -> None:
    before = threading.active_count()
    with CancelWatch(0.0):
        assert threading.active_count() == before
