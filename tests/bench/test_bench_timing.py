"""What the training benchmark reads from clocks."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nanochat_core.bench.train_measuring import PeakMemory
from nanochat_core.bench.train_timing import (
    CudaClock,
    HostClock,
    percentile,
    process_seconds,
)

SCRIPT = """
from nanochat_core.bench.train_timing import process_seconds
print(process_seconds())
"""


@pytest.mark.parametrize(("percent", "expected"), [(5, 1), (50, 10), (95, 19), (100, 20)])
def test_a_percentile_is_the_value_that_so_many_do_not_exceed(percent: int, expected: int) -> None:
    assert percentile([float(n) for n in range(20, 0, -1)], percent) == expected
    assert percentile([7.0], percent) == 7.0


def test_the_host_clock_tells_what_passed_between_marks() -> None:
    clock = HostClock()
    started = time.perf_counter()
    for pause in (0.0, 0.02, 0.0):
        time.sleep(pause)
        clock.mark()
    first, second = clock.seconds()
    assert 0.02 <= first < first + second <= time.perf_counter() - started


def test_a_process_knows_how_long_it_runs() -> None:
    started, first = time.perf_counter(), process_seconds()
    time.sleep(0.05)
    passed = process_seconds() - first
    # A clock tick is 10 ms.
    assert 0.05 - 0.01 <= passed <= time.perf_counter() - started + 0.01


@pytest.mark.e2e
def test_the_age_of_a_process_counts_from_its_start_with_all_imports() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    elapsed = time.monotonic() - started
    # The end of the interpreter is not in it; imports of torch, which take most of it, are.
    assert 0.5 * elapsed < float(done.stdout) <= elapsed + 0.02


def test_psutil_agrees_on_the_age_of_a_process_to_a_second(tmp_path: Path) -> None:
    assert process_seconds(tmp_path / "absent") == pytest.approx(process_seconds(), abs=2.0)


def test_peak_memory_sees_what_was_freed_again() -> None:
    memory = PeakMemory(torch.device("cpu"))
    size = 200 * 2**20
    held = torch.ones(size, dtype=torch.uint8)
    del held
    assert memory.bytes >= 0.9 * size


@pytest.mark.gpu
def test_the_cuda_clock_times_the_device_and_not_the_queue() -> None:
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        left @ left
    torch.cuda.synchronize()
    clock, started = CudaClock(), time.perf_counter()
    clock.mark()
    for _ in range(20):
        left @ left
        clock.mark()
    queued = time.perf_counter() - started
    total = sum(clock.seconds())
    assert total > 2 * queued
    assert total == pytest.approx(time.perf_counter() - started, rel=0.2)
