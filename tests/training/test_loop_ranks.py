"""What two ranks agree on while they train."""

import json
import math
import multiprocessing
import socket
from pathlib import Path

import loop_workers
import pytest

pytestmark = pytest.mark.distributed
SECONDS_ALLOWED = 90


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.parametrize("run_ahead", [False, True], ids=["in step", "run ahead"])
def test_ranks_stop_save_and_skip_together(tmp_path: Path, run_ahead: bool) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (free_port(), tmp_path, run_ahead)
    processes = [
        context.Process(target=loop_workers.main, args=(rank, *arguments)) for rank in range(2)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS_ALLOWED)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert all(map(math.isfinite, first["weights"]))
    # A wish is heard with the step that is under way, or with the one after it.
    late = int(run_ahead)
    assert first["saves"] == [loop_workers.SAVE_WISH + 1 + late]
    assert first["step"] == loop_workers.STOP_WISH + 1 + late
    assert first["good"] == first["step"] - 1, "the spoiled step of one rank counts for none"
