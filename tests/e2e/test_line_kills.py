"""A run is killed, or asked to stop; the next one ends with the same bytes as if it had not been.

Where no moment is given it is drawn anew each time and printed: `pytest -rP`, or look at a failure.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from line_tools import (
    KINDS,
    Command,
    Line,
    Uninterrupted,
    check_store_is_sound,
    flip_file,
    states,
    tell,
)

from nanochat_core.errors import CheckpointError
from nanochat_core.training.checkpoint_files import Checkpoint, checkpoint_folders

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("tiny-line")]

NUM_STEPS = 30
EVERY_STEP = ("--set", "pretrain.checkpoint_every=1", "--stop-after", "pretrain")


def start_of_training(uninterrupted: Uninterrupted, folder: Path) -> Line:
    """A line whose next station to make is pretrain."""
    return uninterrupted.line.copy_until("pretrain", folder)


def wait_for_step(line: Line, command: Command, step: int) -> None:
    def is_there() -> bool:
        return any(int(path.name[5:13]) >= step for path in line.checkpoint_folders("pretrain"))

    assert command.wait_for(is_there, 90), command.output


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_while_training_changes_nothing(
    uninterrupted: Uninterrupted, tmp_path: Path, kind: str
) -> None:
    seed = int.from_bytes(os.urandom(4))
    choose = random.Random(seed)
    step, more_seconds = choose.randint(3, NUM_STEPS - 5), choose.uniform(0, 0.02)
    tell(f"seed {seed}: {kind} killed {more_seconds:.4f} s after the save of step {step} begins")
    line = start_of_training(uninterrupted, tmp_path)
    first = line.start(*EVERY_STEP)
    wait_for_step(line, first, step)
    time.sleep(more_seconds)
    assert first.kill(kind), first.output
    code = first.wait(90)
    check_store_is_sound(line)
    if kind == "trainer":
        assert code == 0, first.output
        assert states(first.output)["pretrain"] == "resumed"
        assert "attempt 2 goes on" in first.output
    else:
        assert code == -signal.SIGKILL
        assert "pretrain" not in line.digests()
        # Not waited for what a killed flow leaves behind: the next run has to cope with it.
        second = line.run(*EVERY_STEP)
        assert states(second.output)["pretrain"] == "resumed"
    first.seconds_until_gone()
    check_store_is_sound(line)
    (base,) = line.store.list("pretrain")
    assert line.store.manifest(base).provenance["resumed_from_step"] > 0
    assert line.digests()["pretrain"] == uninterrupted.digests["pretrain"]
    assert list(line.store_folder.glob("inprogress/*/*")) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)],
)
def test_a_request_to_stop_saves_and_leaves_no_process(
    uninterrupted: Uninterrupted, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    line = start_of_training(uninterrupted, tmp_path)
    first = line.start(*EVERY_STEP)
    wait_for_step(line, first, 5)
    start = time.monotonic()
    # As a terminal does on Ctrl-C: to the whole group.
    os.killpg(first.process.pid, number)
    assert first.wait(30) == code, first.output
    first.seconds_until_gone()
    assert time.monotonic() - start < 15
    assert "run the same command again" in first.output
    assert "Traceback" not in first.output
    check_store_is_sound(line)
    if number == signal.SIGINT:
        check_older_checkpoint_is_taken(uninterrupted, line, tmp_path)


def check_older_checkpoint_is_taken(uninterrupted: Uninterrupted, line: Line, folder: Path) -> None:
    damage_newest_checkpoint(line, folder)
    second = line.run(*EVERY_STEP)
    assert states(second.output)["pretrain"] == "resumed"
    assert "cannot be resumed" in second.output
    assert line.digests()["pretrain"] == uninterrupted.digests["pretrain"]


def damage_newest_checkpoint(line: Line, folder: Path) -> None:
    """Flip bytes of every file of the newest checkpoint in turn; one of them stays flipped."""
    (checkpoints,) = {path.parent for path in line.checkpoint_folders("pretrain")}
    (_, newest), (_, older) = list(checkpoint_folders(checkpoints))[:2]
    identity = whole_identity(newest)
    Checkpoint.open(older, identity)
    choose = random.Random(1)
    files = sorted(path for path in newest.iterdir() if path.is_file())
    assert {path.name for path in files} >= {"manifest.json", "metrics.jsonl"}
    for _ in range(20):
        copy = folder / "checkpoint"
        shutil.copytree(newest, copy)
        flip_file(copy / choose.choice(files).name, choose)
        with pytest.raises(CheckpointError):
            Checkpoint.open(copy, identity)
        shutil.rmtree(copy)
    flip_file(newest / "rank-000-of-001.safetensors", choose)


def whole_identity(folder: Path) -> str:
    """What ties the checkpoint to its recipe, of a checkpoint that is known to be whole."""
    identity: str = json.loads((folder / "manifest.json").read_bytes())["identity"]
    return identity
