"""A pool of spawned processes that never outlives, nor outwaits, the process that started it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class ParallelMap(Protocol):
    """A map whose results come in the order of the items, however they are worked out."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
    ) -> Iterator[Result]:
        """Results of `function`; items and results travel between `workers` processes."""


def _end_with(parent: Connection) -> None:
    try:
        parent.recv()
    except (EOFError, OSError):
        os._exit(1)


def _start_worker(parent: Connection) -> None:
    # Ctrl-C reaches the whole group: the parent decides, and says so by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """Processes that end at once when the block fails, or when this process dies in any way."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(receiver,)
    )
    try:
        yield pool
    except BaseException:
        sender.close()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    else:
        pool.shutdown(wait=True)
    finally:
        sender.close()
        receiver.close()


def map_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[Result]:
    """Results in the order of `items`; with one worker, or one item, in this process."""
    listed = list(items)
    if workers <= 1 or len(listed) <= 1:
        yield from map(function, listed)
        return
    with process_pool(min(workers, len(listed))) as pool:
        yield from pool.map(function, listed)
