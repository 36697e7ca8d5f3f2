"""Kills processes that write checkpoints, and looks after each kill at what it left.

    python checkpoint_killer.py FOLDER NUM_KILLS SEED

Importing torch takes seconds, so one process does it and forks a child for each kill. Nothing here
starts threads before a fork.
"""

import itertools
import json
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from nanochat_core.optim.groups import StateShard
from nanochat_core.training.checkpoint_files import (
    MANIFEST,
    Checkpoint,
    best_checkpoint,
    checkpoint_folders,
    newest_checkpoint,
    read_best,
)
from nanochat_core.training.checkpoints import CheckpointWriter

IDENTITY = "recipe"
KEEP = 2
SHAPES = {"a": (600, 100), "b": (500, 300), "c": (1000, 40), "scalar": ()}


def tensors_at(step: int) -> dict[str, torch.Tensor]:
    """About a megabyte that says of which step it is."""
    return {
        name: torch.full(shape, float(step)).add_(float(number))
        for number, (name, shape) in enumerate(SHAPES.items())
    }


def value_at(step: int) -> float:
    """Something to be best at: falling on the whole, but not with every step."""
    return random.Random(step).uniform(0.0, 1.0) - 0.02 * step


def save_for_ever(folder: Path, token: str) -> None:
    """Resume and save step after step, as training does."""
    checkpoint = newest_checkpoint(folder, IDENTITY)
    start = 0 if checkpoint is None else checkpoint.step
    writer = CheckpointWriter(folder, identity=IDENTITY, token=token, keep=KEEP)
    writer.last_step = start if checkpoint is not None else -1
    for step in itertools.count(start + 1):
        shards = [
            StateShard(name, tuple(tensor.shape), 0, tensor)
            for name, tensor in tensors_at(step).items()
        ]
        writer.save(step, shards, {"step": step}, {"metrics.jsonl": b"{}\n" * step})
        writer.mark_best(step, value_at(step))


def kill_one(folder: Path, token: str, seconds: float) -> None:
    """Start a child, and end it by SIGKILL after so many seconds."""
    child = os.fork()
    if child == 0:
        try:
            save_for_ever(folder, token)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the child ended by itself with {status}"


def check_content(checkpoint: Checkpoint) -> None:
    assert checkpoint.scalars == {"step": checkpoint.step}
    assert checkpoint.attachment("metrics.jsonl") == b"{}\n" * checkpoint.step
    for name, tensor in tensors_at(checkpoint.step).items():
        assert torch.equal(checkpoint.read(name), tensor), (checkpoint.step, name)


def look(folder: Path) -> tuple[int, int | None]:
    """Newest and best step, once their content is found to be right."""
    newest, best = newest_checkpoint(folder, IDENTITY), best_checkpoint(folder, IDENTITY)
    if newest is None:
        assert best is None
        return 0, None
    check_content(newest)
    if best is None:
        assert read_best(folder, IDENTITY) is None, "a best one is named that is not there"
        return newest.step, None
    check_content(best)
    record = read_best(folder, IDENTITY)
    assert record is not None
    assert (record.step, record.value) == (best.step, value_at(best.step))
    return newest.step, best.step


def main(folder: Path, num_kills: int, seed: int) -> None:
    """Kill, look, and go on; the last line says what was seen."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    choose = random.Random(seed)
    newest, best = 0, None
    # A machine with other work is slower: each life is a random number of saves long, 2.5 at most.
    seconds_alive = 0.0
    interrupted = kills_before_a_save = most_folders = 0
    for kill in range(num_kills):
        seconds_per_save = min(0.4, max(0.05, seconds_alive) / max(1, newest))
        seconds = choose.uniform(0.0, 2.5 * seconds_per_save)
        seconds_alive += seconds
        kill_one(folder, f"{kill:08x}", seconds)
        step, best_step = look(folder)
        assert step >= newest, f"step {newest} was there, now it is {step}"
        if best is not None:
            assert best_step is not None, "the best was lost"
            assert value_at(best_step) <= value_at(best), "a worse one became the best"
        kills_before_a_save += step == newest
        newest, best = step, best_step
        folders = [path for _, path in checkpoint_folders(folder)]
        interrupted += any(not (path / MANIFEST).exists() for path in folders)
        most_folders = max(most_folders, len(folders))
    seen = {
        "steps": newest,
        "best": best,
        "interrupted": interrupted,
        "kills_before_a_save": kills_before_a_save,
        "most_folders": most_folders,
    }
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
