"""The rows of a job's micro-batches: chosen once, kept in its work folder, fewer when they must be.

A job that runs out of memory writes down a smaller number and ends with DeviceMemoryError; started
again, it takes that number and goes on from its newest checkpoint.
"""

import logging
import math
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import torch
from pydantic import Field, ValidationError

from nanochat_core.config.base import Auto, Config
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import JobSpec
from nanochat_core.distributed.collectives import all_reduce, broadcast
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError, DeviceMemoryError
from nanochat_core.jobs.training_run import TrainingRun
from nanochat_core.model.counts import NUMBER_BYTES, Numbers, training_memory
from nanochat_core.training.device_batch import (
    GIGABYTE,
    MEMORY_ERRORS,
    WHAT_TO_DO,
    CudaMemory,
    DeviceMemory,
    Probe,
    fewer_rows,
    is_out_of_memory,
    limit_memory,
    search_rows,
)
from nanochat_core.training.dial import CPU_ROWS, guess_rows, most_rows, rows_of_rank
from nanochat_core.training.step import MicroBatch

log = logging.getLogger(__name__)

DEVICE_BATCH_FILE = "device_batch.json"
EVALUATED_ROWS = {"cuda": 32}
"""Rows of a pass without gradients where nobody says how many; elsewhere `CPU_ROWS`."""


class KeptBatch(Config):
    """What was asked for, and the rows of a micro-batch that it came to."""

    asked: int | Auto
    limit: float | Auto
    activation_checkpointing: bool = False
    rows: int = Field(ge=1)

    @classmethod
    def of(cls, execution: Execution, rows: int) -> "KeptBatch":
        """The rows of an execution."""
        return cls(
            asked=execution.device_batch_size,
            limit=execution.memory_limit_gb,
            activation_checkpointing=execution.activation_checkpointing,
            rows=rows,
        )

    @classmethod
    def rows_in(cls, folder: Path, execution: Execution) -> int:
        """The rows that an earlier try has come to, or 0 if nobody asked for the same."""
        try:
            kept = cls.model_validate_json((folder / DEVICE_BATCH_FILE).read_bytes())
        except FileNotFoundError:
            return 0
        except ValidationError:
            log.warning("%s cannot be read, so the batch is chosen again", DEVICE_BATCH_FILE)
            return 0
        return kept.rows if kept == cls.of(execution, kept.rows) else 0

    def save(self, folder: Path) -> None:
        """Write it whole; several ranks may do so at once, and write the same."""
        # Ranks of other machines may have the same process id.
        temporary = folder / f"{DEVICE_BATCH_FILE}.{uuid4().hex}"
        temporary.write_text(self.model_dump_json(), encoding="utf-8")
        os.replace(temporary, folder / DEVICE_BATCH_FILE)


class DeviceRows:
    """The rows of one job on one rank; it holds the memory limit from its beginning on."""

    def __init__(self, spec: JobSpec, ranks: Ranks) -> None:
        self.spec, self.ranks = spec, ranks
        self.rows = 0
        if spec.execution.memory_limit_gb != "auto":
            limit_memory(spec.execution.memory_limit_gb, ranks.device)

    def settle(self, choose: Callable[[], int], *, share: int = 0) -> JobSpec:
        """The spec with a number of rows, the same on every rank: kept, or chosen now.

        `share`: rows of a step that each rank has, if micro-batches must divide them.
        """
        execution, folder = self.spec.execution, Path(self.spec.work_folder)
        kept = KeptBatch.rows_in(folder, execution) if self.ranks.is_main else 0
        rows = _from_rank_0(kept, self.ranks)
        is_auto = execution.device_batch_size == "auto"
        if rows:
            # At another number of ranks a rank's share is another one.
            rows = math.gcd(rows, share) if is_auto else rows
            log.info("%d rows at a time, as in an earlier try", rows)
        else:
            rows = _least(choose(), self.ranks)
            asked = execution.device_batch_size
            log.info("%d rows at a time (device_batch_size: %s)", rows, asked)
        self.rows = rows
        if self.ranks.is_main:
            KeptBatch.of(execution, rows).save(folder)
        changed = execution.model_copy(update={"device_batch_size": rows})
        return self.spec.model_copy(update={"execution": changed})

    @contextmanager
    def told(self) -> Iterator[None]:
        """Memory that runs out in here is told as what it means for the next try."""
        try:
            yield
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            # What the frames of the error hold is much of the memory.
            traceback.clear_frames(error.__traceback__)
            raise self._memory_error() from error

    def _memory_error(self) -> ConfigError | DeviceMemoryError:
        rank = f"rank {self.ranks.rank}"
        if self.rows == 0:
            return ConfigError(
                f"{rank} ran out of memory before the first micro-batch: the model itself does "
                f"not fit; {WHAT_TO_DO}"
            )
        if self.rows == 1:
            return ConfigError(
                f"{rank} ran out of memory with one row at a time, and there is no smaller "
                f"batch; {WHAT_TO_DO}"
            )
        fewer = fewer_rows(self.rows)
        KeptBatch.of(self.spec.execution, fewer).save(Path(self.spec.work_folder))
        return DeviceMemoryError(
            f"{rank} ran out of memory with {self.rows} rows at a time; the next try takes {fewer}"
        )


def settle_training(
    device_rows: DeviceRows,
    run: TrainingRun,
    rows_per_step: int,
    micro_batch: Callable[[int], MicroBatch],
) -> None:
    """Give a run the rows of its micro-batches; `micro_batch(rows)` is one to try with."""
    share = rows_of_rank(rows_per_step, run.ranks.world_size)

    def choose() -> int:
        asked = run.spec.execution.device_batch_size
        if asked != "auto":
            return asked
        # Other micro-batches make other bits, and then no beginning can be shared.
        trunks = 0 if run.trunk is None else run.trunk.settings["device_batch_size"]
        if trunks and share % trunks == 0:
            return int(trunks)
        if run.ranks.device.type != "cuda":
            return min(CPU_ROWS, most_rows(share))
        memory = CudaMemory(run.ranks.device, run.spec.execution.memory_limit_gb)
        return find_rows(run, share, micro_batch, memory)

    run.spec = device_rows.settle(choose, share=share)


def rows_of(spec: JobSpec) -> int:
    """The rows of a micro-batch, which must be settled by now."""
    rows = spec.execution.device_batch_size
    assert rows != "auto", "DeviceRows.settle comes first"
    return rows


def evaluated_rows(execution: Execution, device: torch.device) -> int:
    """Rows of a pass without gradients: as asked, or what the device is good at."""
    asked = execution.device_batch_size
    return EVALUATED_ROWS.get(device.type, CPU_ROWS) if asked == "auto" else asked


def find_rows(
    run: TrainingRun, share: int, micro_batch: Callable[[int], MicroBatch], memory: DeviceMemory
) -> int:
    """The most rows that fit the memory of this rank, which has `share` rows of every step."""
    execution, model = run.spec.execution, run.state.model
    static_bytes, limit_bytes = memory.start(), memory.limit()
    estimate = training_memory(
        model.config,
        numbers=numbers_of(model.compute_dtype),
        ranks=run.ranks.world_size,
        compiled=execution.compile,
        activation_checkpointing=execution.activation_checkpointing,
    )
    choice = search_rows(
        Probe(model, run.loss_function, micro_batch, share, memory),
        guess=guess_rows(estimate, share, limit_bytes),
        most=most_rows(share),
        static_bytes=static_bytes,
        limit_bytes=limit_bytes,
    )
    memory.start()
    tried = ", ".join(map(str, choice.attempts))
    log.info("rows tried: %s, of %.2f GB", tried, limit_bytes / GIGABYTE)
    return choice.rows


def numbers_of(dtype: torch.dtype) -> Numbers:
    """The name of a compute dtype in the closed forms."""
    name = str(dtype).removeprefix("torch.")
    return next(numbers for numbers in NUMBER_BYTES if numbers == name)


def _from_rank_0(value: int, ranks: Ranks) -> int:
    return int(broadcast(torch.tensor([value], device=ranks.device), ranks).item())


def _least(value: int, ranks: Ranks) -> int:
    """The smallest of all ranks' numbers."""
    lowest = torch.tensor([-value], device=ranks.device)
    return -int(all_reduce(lowest, ranks, operation="max").wait().item())
