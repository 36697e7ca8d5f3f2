"""Hosts that are killed while they upload or fetch checkpoints, at any moment."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from counting_trainer import PLACE, read_step, state_after, steps_in_store
from s3_server import S3Server, with_s3

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.leases import Lease
from nanochat_core.artifacts.location import open_files
from tasks.stored_work import StoredWork, whole_steps

# Each line on stdin is a work folder and the seconds that its host has to live, from its start or
# from when it has fetched: forked, so that thirty hosts import s3fs once.
DYING = """
import os, signal, sys, time
from pathlib import Path
from counting_trainer import CountingTrainer
from nanochat_core.artifacts.leases import Lease
from nanochat_core.artifacts.location import open_files
from tasks import checkpoint_sync
from tasks.checkpoint_sync import CheckpointSync
from tasks.stored_work import StoredWork
import s3fs

checkpoint_sync.LOOK_SECONDS = 0.005
for line in sys.stdin:
    work, seconds, since = line.split()
    runs, tells = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tells)
        if since == "fetched":
            os.read(runs, 1)
        os.close(runs)
        time.sleep(float(seconds))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print("killed", flush=True)
        continue
    Path(work).mkdir(parents=True, exist_ok=True)
    stored = StoredWork(open_files(sys.argv[1]), sys.argv[2], Path(work), Lease())
    sync = CheckpointSync(stored, lambda _level, _line: None)
    sync.fetch()
    os.write(tells, b".")
    with sync.running():
        CountingTrainer(Path(work), 0.02, 200_000).train(1_000_000)
"""


def die_again_and_again(url: str, server: S3Server, folder: Path, rounds: int) -> None:
    """Hosts are killed at random moments; after each only whole steps are usable, anywhere."""
    seed = int.from_bytes(os.urandom(4))
    choose = random.Random(seed)
    files = open_files(url)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    hosts = subprocess.Popen(
        [sys.executable, "-c", DYING, url, PLACE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=with_s3({**os.environ, "PYTHONPATH": path}, server),
    )
    assert hosts.stdin is not None
    assert hosts.stdout is not None
    newest = 0
    for round_number in range(rounds):
        work = folder / f"host-{choose.randint(0, 2)}" / "work"
        since = choose.choice(["start", "fetched", "fetched"])
        seconds = choose.uniform(0.0, 1.5)
        hosts.stdin.write(f"{work} {seconds} {since}\n")
        hosts.stdin.flush()
        assert hosts.stdout.readline() == "killed\n", f"seed {seed}"
        check = folder / f"check-{round_number}" / "work"
        check.mkdir(parents=True)
        fetched = StoredWork(files, PLACE, check, Lease()).fetch() or 0
        assert fetched >= newest, f"seed {seed}: step {newest} was lost in round {round_number}"
        newest = fetched
        whole = steps_in_store(files)
        for step in [*whole_steps(check / "checkpoints"), *whole_steps(work / "checkpoints")]:
            number, state = read_step(step)
            assert state == state_after(number), f"seed {seed}"
        for step in whole:
            check_step_in_store(files, step, folder / f"check-{round_number}")
    hosts.communicate()
    assert newest > 0


def check_step_in_store(files: Files, step: str, folder: Path) -> None:
    """Every file of a step that has a manifest in the store is there and right."""
    target = folder / step
    target.mkdir()
    for path in files.infos(f"{PLACE}/checkpoints/{step}"):
        files.fetch(f"{PLACE}/checkpoints/{step}/{path}", target / path)
    read_step(target)


@pytest.mark.s3
@pytest.mark.parametrize("rounds", [4, pytest.param(30, marks=pytest.mark.long)])
def test_a_kill_at_any_moment_leaves_only_whole_steps(
    s3_server: S3Server, s3_url: str, tmp_path: Path, rounds: int
) -> None:
    die_again_and_again(s3_url, s3_server, tmp_path, rounds)
