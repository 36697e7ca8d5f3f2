import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import checkpoint_killer
import pytest

pytestmark = pytest.mark.e2e

NUM_KILLS = 100


def test_of_100_kills_while_checkpoints_are_written_each_leaves_a_whole_newest_one(
    tmp_path: Path,
) -> None:
    seed = int.from_bytes(os.urandom(4))
    arguments = [str(tmp_path), str(NUM_KILLS), str(seed)]
    done = subprocess.run(
        [sys.executable, "-W", "error", checkpoint_killer.__file__, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-4000:]}"
    seen = json.loads(done.stdout.splitlines()[-1])
    # Otherwise the kills did not hit what this is about.
    assert seen["interrupted"] >= NUM_KILLS // 5, seen
    assert seen["steps"] >= 20, seen
    assert seen["best"] is not None
    # The newest two, the best, the one before it, one on its way and one half removed.
    assert seen["most_folders"] <= checkpoint_killer.KEEP + 4, seen


LONELY = """
import sys
from pathlib import Path
import torch
from nanochat_core.optim.groups import StateShard
from nanochat_core.training import checkpoints

writer = checkpoints.CheckpointWriter(
    Path(sys.argv[1]), identity="x", token="0000000a", rank=0, world_size=2
)
writer.save(1, [StateShard("a", (4,), 0, torch.zeros(2))], {}, {})
raise SystemExit("training failed")
"""


def test_a_process_that_fails_does_not_wait_long_for_ranks_that_are_gone(tmp_path: Path) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LONELY), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "training failed" in done.stderr
    assert time.monotonic() - start < 60
