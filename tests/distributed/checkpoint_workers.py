"""Ranks that train, and so speak to each other all the time, while their checkpoints are written.

Every function of torch.distributed notes which thread calls it.
"""

import functools
import json
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import rank_workers
import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_core.distributed import collectives
from nanochat_core.distributed.ranks import Ranks, init_ranks
from nanochat_core.optim.groups import StateShard
from nanochat_core.optim.muon_adamw import MuonAdamW
from nanochat_core.training.checkpoints import CheckpointWriter, spread_over_ranks

IDENTITY = "recipe"
TOKEN = "0000000a"
NUM_SAVES = 12
WORLD = 2


class Calls:
    """Who called torch.distributed, by thread name and function."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def watch(self) -> None:
        """Wrap all functions, and the methods through which every collective of a group goes."""
        for module in (dist, dist.distributed_c10d):
            for name, value in vars(module).copy().items():
                if type(value) is FunctionType and not name.startswith("_"):
                    setattr(module, name, self._wrapped(name, value))
        for name in ("allreduce", "allgather", "_allgather_base", "broadcast", "barrier"):
            method = getattr(dist.ProcessGroup, name)
            setattr(dist.ProcessGroup, name, self._wrapped(f"ProcessGroup.{name}", method))

    def of(self, thread: str) -> int:
        """Number of calls of a thread."""
        return sum(n for key, n in self.counts.items() if key.split(" ")[0] == thread)

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.counts[f"{threading.current_thread().name} {name}"] += 1
            return function(*args, **kwargs)

        return call


def state_of(model: rank_workers.TinyModel, optimizer: MuonAdamW, ranks: Ranks) -> list[StateShard]:
    weights: dict[str, Tensor] = {f"model.{n}": t for n, t in model.state_dict().items()}
    own = spread_over_ranks(weights, ranks.rank, ranks.world_size)
    return own + optimizer.state_shards()


def train_and_save(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Save before every other step, and never wait for a save but by the next one."""
    calls = Calls()
    calls.watch()
    model, optimizer = rank_workers.make(torch.float32, ranks, "exact")
    writer = CheckpointWriter(
        folder / "checkpoints",
        identity=IDENTITY,
        token=TOKEN,
        rank=ranks.rank,
        world_size=ranks.world_size,
        keep=NUM_SAVES,
    )
    calls_while_writing = 0
    for save in range(NUM_SAVES):
        rank_workers.train(model, optimizer, ranks, range(2 * save, 2 * save + 2), micros=2)
        writer.save(save + 1, state_of(model, optimizer, ranks), {}, {})
        writer.mark_best(save + 1, -float(save))
        for number in range(200):
            before = calls.of("MainThread")
            total = collectives.all_reduce(torch.tensor([number + ranks.rank]), ranks).wait()
            assert total.item() == 2 * number + 1, "another message came between"
            if writer.is_writing:
                calls_while_writing += calls.of("MainThread") - before
        rank_workers.save(folder / f"weights-{save + 1}", model, ranks)
    writer.wait()
    threads = sorted({key.split(" ")[0] for key in calls.counts})
    # That a thread of that name would have been noticed.
    probe = threading.Thread(target=dist.get_rank, name="probe")
    probe.start()
    probe.join()
    return {
        "threads": threads,
        "functions": sorted(calls.counts),
        "calls_while_writing": calls_while_writing,
        "probe": calls.of("probe"),
    }


def main(rank: int, port: int, folder: Path) -> None:
    """One rank; what it saw goes to a file."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    environ = {"RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_RANK": str(rank)}
    os.environ.update(environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = init_ranks("cpu", timeout_seconds=60)
    try:
        seen = train_and_save(ranks, folder)
        (folder / f"seen-{rank}.json").write_text(json.dumps(seen))
    finally:
        ranks.close()
