"""Run as a process of its own: search for the rows that fit, with real memory of a CPU.

    python memory_tools.py GIGABYTES GUESS

The process may take so many gigabytes more than it has once it is ready; prints what was found.
"""

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.training.compiling import loss_function
from nanochat_core.training.device_batch import (
    GIGABYTE,
    Probe,
    limit_memory,
    private_data_bytes,
    search_rows,
)
from nanochat_core.training.step import MicroBatch

MOST_ROWS = 16
CONFIG = ModelConfig(sequence_len=512, vocab_size=320, n_layer=2, n_head=2, n_kv_head=2, n_embd=128)


@dataclass(frozen=True)
class ProcessMemory:
    """The resident memory of this process, whose peak Linux forgets when it is told to."""

    limit_bytes: int

    def start(self) -> int:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        return resident_bytes("VmRSS")

    def peak(self) -> int:
        return resident_bytes("VmHWM")

    def limit(self) -> int:
        return self.limit_bytes


def resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(kilobytes)


def make_model() -> GPT:
    model = GPT(CONFIG)
    model.init_weights(0)
    return model


def micro_batch(rows: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(rows)
    shape = rows, CONFIG.sequence_len + 1
    tokens_BT = torch.randint(0, CONFIG.vocab_size, shape, generator=generator)
    return MicroBatch(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous(), 1.0)


def make_probe(model: GPT, limit_bytes: int, most: int = MOST_ROWS) -> Probe:
    make: Callable[[int], MicroBatch] = micro_batch
    function = loss_function(model, compiled=False)
    return Probe(model, function, make, most, ProcessMemory(limit_bytes))


def main(gigabytes: float, guess: int) -> None:
    torch.set_num_threads(1)
    model = make_model()
    make_probe(model, 0)(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    static_bytes = ProcessMemory(0).start()
    limit_memory(private_data_bytes() / GIGABYTE + gigabytes, torch.device("cpu"))
    probe = make_probe(model, static_bytes + int(gigabytes * GIGABYTE))
    choice = search_rows(
        probe,
        guess=guess,
        most=MOST_ROWS,
        static_bytes=static_bytes,
        limit_bytes=probe.memory.limit(),
    )
    unchanged = all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    sys.stdout.write(
        json.dumps(
            {
                "rows": choice.rows,
                "fitting": {a.rows: a.peak_bytes is not None for a in choice.attempts},
                "bytes": {a.rows: (a.peak_bytes or 0) - static_bytes for a in choice.attempts},
                "unchanged": unchanged and all(p.grad is None for p in model.parameters()),
            }
        )
    )


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
