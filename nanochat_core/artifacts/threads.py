"""Several transfers at once that end together: when one fails, the others stop being patient."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Stop:
    """Two flags that are also up when those around them are: a failure ends all patience, too."""

    def __init__(self, above: "_Stop | None", *, is_patient: bool = True) -> None:
        self._failure, self._above, self._is_patient = threading.Event(), above, is_patient

    def fail(self) -> None:
        self._failure.set()

    def has_failed(self) -> bool:
        return self._failure.is_set() or (self._above is not None and self._above.has_failed())

    def is_patience_over(self) -> bool:
        is_over = not self._is_patient or self._failure.is_set()
        return is_over or (self._above is not None and self._above.is_patience_over())


_stop: ContextVar[_Stop | None] = ContextVar("stop", default=None)


def is_patience_over() -> bool:
    """Whether what this thread works for has failed already, so that waiting helps nobody."""
    stop = _stop.get()
    return stop is not None and stop.is_patience_over()


@contextmanager
def without_patience() -> Iterator[None]:
    """No waiting for a store inside: for tidying up after something that has failed."""
    token = _stop.set(_Stop(None, is_patient=False))
    try:
        yield
    finally:
        _stop.reset(token)


def in_threads(
    action: Callable[[Item], Result], items: Sequence[Item], num_threads: int
) -> list[Result]:
    """`action` of every item, in order; the first error is raised and ends all.

    Those that are under way end at their next wait for the store, or at their next own parts.
    """
    if num_threads == 1 or len(items) < 2:
        return [action(item) for item in items]
    stop = _Stop(_stop.get())

    def run(item: Item) -> Result:
        if stop.has_failed():
            raise CancelledError
        _stop.set(stop)
        return action(item)

    with ThreadPoolExecutor(min(num_threads, len(items))) as pool:
        futures = [pool.submit(run, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            stop.fail()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
