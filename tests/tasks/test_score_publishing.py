"""Publishing beside a job: it goes on meanwhile, and a stop waits for no store."""

import math
import threading
import time
from collections.abc import Callable

import pytest

from nanochat_core.artifacts.threads import is_patience_over
from tasks import score_publishing
from tasks.score_publishing import publishing


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_publishing, "LOOK_SECONDS", 0.001)


def test_what_is_new_is_published_while_the_job_runs_and_at_its_end() -> None:
    published, enough = list[bool](), threading.Event()

    def publish() -> bool:
        published.append(is_patience_over())
        if len(published) == 3:
            enough.set()
        return True

    with publishing(publish):
        assert enough.wait(5)
        before = len(published)
    assert len(published) > before
    assert all(published), "a loop that tries again needs no patience of the store"


def stopped(publish: Callable[[], bool], after: threading.Event) -> float:
    """Seconds from a stop, which comes after the event, to the end of it all."""
    stopped_at = math.inf

    def job() -> None:
        nonlocal stopped_at
        assert after.wait(5)
        stopped_at = time.monotonic()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), publishing(publish):
        job()
    return time.monotonic() - stopped_at


def test_a_publisher_that_hangs_holds_up_neither_the_job_nor_a_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(score_publishing, "STOP_SECONDS", 0.05)
    hangs, goes_on = threading.Event(), threading.Event()

    def publish() -> bool:
        hangs.set()
        return goes_on.wait(30)

    assert stopped(publish, hangs) < 5
    goes_on.set()


@pytest.mark.parametrize("takes", [True, False])
def test_a_stop_waits_for_the_last_scores_unless_the_store_was_away(takes: bool) -> None:
    second, seconds, num_done = threading.Event(), [0.0, 0.3], 0

    def publish() -> bool:
        nonlocal num_done
        if len(seconds) == 1:
            second.set()
        time.sleep(seconds.pop(0) if seconds else 0)
        num_done += 1
        return takes

    stopped(publish, second)
    assert num_done == (3 if takes else 1)
