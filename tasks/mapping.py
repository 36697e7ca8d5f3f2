"""Work on many parts, mapped by Prefect over batches of them: tens of task runs, not thousands."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE

from nanochat_core.data.workers import map_in_processes, process_pool

BATCH_ITEMS, MOST_BATCHES = 16, 64

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_batches(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[Result]:
    """Results in the order of `items`, worked out by `workers` processes; each batch is a task run.

    Items are begun in their order and results handed out as soon as they are there. One batch is
    no task of its own. Call it inside a flow. When the caller ends, the processes end at once, and
    with them the threads that wait for a batch.
    """
    listed = list(items)
    if len(listed) <= BATCH_ITEMS:
        yield from map_in_processes(function, listed, workers=workers)
        return
    # One pool for all batches: as many processes as were asked for, however many threads wait.
    with process_pool(workers) as pool:
        results = [pool.submit(function, item) for item in listed]
        size = max(BATCH_ITEMS, -(-len(results) // MOST_BATCHES))
        batches = [
            _batch_task.submit(
                _Waited(results[first : first + size]), _batch_name(first, size, len(results))
            )
            for first in range(0, len(results), size)
        ]
        for result in results:
            yield result.result()
        for batch in batches:
            batch.result()


def _batch_name(first: int, size: int, count: int) -> str:
    return f"parts {first + 1} to {min(first + size, count)} of {count}"


class _Waited:
    """Results that are being worked out. Not a list: Prefect would walk through it."""

    def __init__(self, results: Sequence[Future[Any]]) -> None:
        self.results = results


def _batch(waited: _Waited, name: str) -> int:  # noqa: ARG001  shown
    for result in waited.results:
        result.result()
    return len(waited.results)


_batch_task: Any = Task(
    _batch, name="batch", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False
)
