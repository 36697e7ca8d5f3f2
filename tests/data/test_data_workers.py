import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat_core.data.workers import map_in_processes

PARENT = """
import sys, time
from pathlib import Path
from nanochat_core.data.workers import map_in_processes
from data_worker_tools import write_pid_and_sleep

if __name__ == "__main__":
    list(map_in_processes(write_pid_and_sleep, [Path(p) for p in sys.argv[1:]], workers=2))
"""


def test_one_worker_stays_in_this_process() -> None:
    assert list(map_in_processes(abs, [-1, 2, -3], workers=1)) == [1, 2, 3]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"


@pytest.mark.distributed
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_workers_do_not_outlive_their_parent(tmp_path: Path, by: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    files = [tmp_path / name for name in "ab"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, str(script), *map(str, files)], env=environment, stderr=subprocess.DEVNULL
    ) as parent:
        deadline = time.monotonic() + 30
        while not all(file.exists() and file.read_text() for file in files):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(by)
        parent.wait(timeout=10)
    pids = [int(file.read_text()) for file in files]
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
