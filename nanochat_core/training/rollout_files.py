"""Rollouts as parquet files for people to read: one a step while training, then one for all."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = pa.schema(
    [
        ("step", pa.int32()),
        ("question_index", pa.int32()),
        ("sample", pa.int32()),
        ("question", pa.string()),
        ("reply", pa.string()),
        ("reply_with_tools", pa.string()),
        ("reward", pa.float64()),
        ("advantage", pa.float64()),
        ("num_prompt_tokens", pa.int32()),
        ("num_tokens", pa.int32()),
    ]
)


def write_step(folder: Path, step: int, records: Sequence[dict[str, Any]]) -> None:
    """Write the rollouts of a step; a step that is done again after a resume is replaced whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.parquet"
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(list(records), schema=COLUMNS), temporary)
    os.replace(temporary, path)


def merge_steps(folder: Path, target: Path) -> None:
    """Copy all steps, in order, into one file."""
    with pq.ParquetWriter(target, COLUMNS) as writer:
        for path in _step_files(folder):
            writer.write_table(pq.read_table(path, schema=COLUMNS))


def mean_rewards(folder: Path) -> list[float]:
    """The mean reward of every step, in order."""
    columns = (pq.read_table(path, columns=["reward"])["reward"] for path in _step_files(folder))
    return [sum(rewards.to_pylist()) / len(rewards) for rewards in columns]


def _step_files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("step-*.parquet"))
