"""Several transfers at once that end together: when one fails, the others stop being patient."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Stop:
    """A flag that is also up when the one around it is."""

    def __init__(self, above: "_Stop | None") -> None:
        self._event, self._above = threading.Event(), above

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set() or (self._above is not None and self._above.is_set())


_stop: ContextVar[_Stop | None] = ContextVar("stop", default=None)


def is_patience_over() -> bool:
    """Whether what this thread works for has failed already, so that waiting helps nobody."""
    stop = _stop.get()
    return stop is not None and stop.is_set()


@contextmanager
def without_patience() -> Iterator[None]:
    """No waiting for a store inside: for tidying up after something that has failed."""
    stop = _Stop(None)
    stop.set()
    token = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(token)


def in_threads(
    action: Callable[[Item], Result], items: Sequence[Item], num_threads: int
) -> list[Result]:
    """`action` of every item, in order; the first error ends all and is raised."""
    if num_threads == 1 or len(items) < 2:
        return [action(item) for item in items]
    stop = _Stop(_stop.get())

    def run(item: Item) -> Result:
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
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
