"""Work on many shards, as Prefect task runs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat_core.data.workers import map_in_processes
from tasks.mapping import BATCH_ITEMS, map_batches

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


def square_and_process(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def refuse_thirty(number: int) -> int:
    if number == 30:
        raise ValueError("thirty")
    return number


def in_flow(function: Callable[[int], object], count: int) -> list[object]:
    from prefect import flow

    @flow(name="mapping", persist_result=False)
    def mapping() -> list[object]:
        return list(map_batches(function, range(count), workers=2))

    return mapping()


def batch_names() -> list[str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return sorted(run.name for run in client.read_task_runs() if run.name.startswith("parts "))


def test_batches_are_task_runs_and_results_come_in_order_from_other_processes() -> None:
    count = 2 * BATCH_ITEMS + 3
    results = in_flow(square_and_process, count)
    assert [square for square, _ in results] == [n * n for n in range(count)]
    processes = {process for _, process in results}
    assert os.getpid() not in processes
    assert len(processes) <= 2
    assert batch_names() == ["parts 1 to 16 of 35", "parts 17 to 32 of 35", "parts 33 to 35 of 35"]


def test_few_shards_are_no_task_of_their_own() -> None:
    before = batch_names()
    assert [square for square, _ in in_flow(square_and_process, 3)] == [0, 1, 4]
    assert batch_names() == before


def test_what_fails_in_a_batch_is_raised_and_no_process_is_left() -> None:
    import psutil

    with pytest.raises(ValueError, match="thirty"):
        in_flow(refuse_thirty, 3 * BATCH_ITEMS)
    workers = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
    psutil.wait_procs(workers, timeout=10)
    assert not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_the_plain_map_gives_the_same(tmp_path: Path) -> None:
    plain = [square for square, _ in map_in_processes(square_and_process, range(40), workers=1)]
    assert [square for square, _ in in_flow(square_and_process, 40)] == plain
