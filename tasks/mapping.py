"""Work on many shards, mapped by Prefect over batches of them: tens of task runs, not thousands."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE

from nanochat_core.data.workers import map_in_processes, process_pool

BATCH_SHARDS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_batches(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[Result]:
    """Results in the order of `items`, worked out by `workers` processes; each batch is a task run.

    One batch is no task of its own. Call it inside a flow. When the caller ends, the processes end
    at once, and with them the threads that wait for a batch.
    """
    listed = list(items)
    batches = [listed[i : i + BATCH_SHARDS] for i in range(0, len(listed), BATCH_SHARDS)]
    if len(batches) <= 1:
        yield from map_in_processes(function, listed, workers=workers)
        return
    # One pool for all batches: as many processes as were asked for, however many threads wait.
    with process_pool(workers) as pool:
        work = _Work(pool, function)
        futures = [
            _batch_task.submit(work, batch, _batch_name(number, len(batch)))
            for number, batch in enumerate(batches)
        ]
        for future in futures:
            yield from future.result()


def _batch_name(number: int, length: int) -> str:
    first = number * BATCH_SHARDS
    return f"shards {first + 1} to {first + length}"


class _Work:
    """What is done, and where. Not a dataclass: Prefect would walk through it."""

    def __init__(self, pool: Executor, function: Callable[[Any], Any]) -> None:
        self.pool, self.function = pool, function


def _batch(work: _Work, items: Sequence[Any], name: str) -> list[Any]:  # noqa: ARG001  shown
    return list(work.pool.map(work.function, items))


_batch_task: Any = Task(
    _batch, name="batch", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False
)
