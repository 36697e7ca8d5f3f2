"""The rows of a micro-batch in the training benchmark: as asked, or found as the job finds them."""

import logging
from collections.abc import Callable
from typing import cast

import torch

from nanochat_core.config.execution import Execution
from nanochat_core.distributed.collectives import all_reduce
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.model.counts import Numbers, training_memory
from nanochat_core.model.gpt import GPT
from nanochat_core.training.device_batch import (
    GIGABYTE,
    CudaMemory,
    DeviceMemory,
    Probe,
    search_rows,
)
from nanochat_core.training.dial import CPU_ROWS, guess_rows, most_rows, rows_of_rank
from nanochat_core.training.step import LossFunction, MicroBatch

log = logging.getLogger(__name__)

MakeBatch = Callable[[int], MicroBatch]


def choose_rows(
    execution: Execution,
    ranks: Ranks,
    rows_per_step: int,
    model: GPT,
    loss: LossFunction,
    make: MakeBatch,
) -> int:
    """As many rows as asked for, or the most that fit a GPU; `make(rows)` gives one to try."""
    if execution.device_batch_size != "auto":
        return execution.device_batch_size
    share = rows_of_rank(rows_per_step, ranks.world_size)
    if ranks.device.type != "cuda":
        return min(CPU_ROWS, most_rows(share))
    memory = CudaMemory(ranks.device, execution.memory_limit_gb)
    rows = most_that_fit(
        execution, model, loss, make, share=share, memory=memory, ranks=ranks.world_size
    )
    lowest = torch.tensor([-rows], device=ranks.device)
    return -int(all_reduce(lowest, ranks, operation="max").wait().item())


def most_that_fit(
    execution: Execution,
    model: GPT,
    loss: LossFunction,
    make: MakeBatch,
    *,
    share: int,
    memory: DeviceMemory,
    ranks: int = 1,
) -> int:
    """The largest power of two of a rank's `share` of a step that its memory holds."""
    static_bytes, limit_bytes = memory.start(), memory.limit()
    estimate = training_memory(
        model.config,
        ranks=ranks,
        numbers=cast("Numbers", str(model.compute_dtype).removeprefix("torch.")),
        compiled=execution.compile,
        activation_checkpointing=execution.activation_checkpointing,
    )
    choice = search_rows(
        Probe(model, loss, make, share, memory),
        guess=guess_rows(estimate, share, limit_bytes),
        most=most_rows(share),
        static_bytes=static_bytes,
        limit_bytes=limit_bytes,
    )
    memory.start()  # what was only tried is no peak of the run
    tried = ", ".join(map(str, choice.attempts))
    log.info("rows tried: %s, of %.2f GB", tried, limit_bytes / GIGABYTE)
    return choice.rows
