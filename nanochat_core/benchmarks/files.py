"""Benchmark files on disk: rows as the hub publishes them, checked one by one."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from nanochat_core.benchmarks.base import Split
from nanochat_core.conversation.pools import permutation
from nanochat_core.errors import ConfigError, DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


class Row(BaseModel):
    """The columns of a row that a benchmark needs; others are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


R = TypeVar("R", bound=Row)
T = TypeVar("T")


def expected_files(name: str, split: Split) -> tuple[str, ...]:
    """File names under which the rows of a split are looked for, in this order."""
    return tuple(f"{name}-{split}{suffix}" for suffix in SUFFIXES)


def read_benchmark_rows(folder: Path | None, name: str, split: Split, row_type: type[R]) -> list[R]:
    """The rows of a split, shuffled once and for all (`permuted`).

    Raises ConfigError without a folder, DataError for a missing file or a row of another form.
    """
    return permuted(read_rows(file_of(folder, name, split), row_type))


def file_of(folder: Path | None, name: str, split: Split) -> Path:
    """The file that holds the rows of a split; ConfigError without a folder, DataError without it.

    Of several forms the first of `expected_files` counts.
    """
    names = " or ".join(expected_files(name, split))
    if folder is None:
        raise ConfigError(
            f"the rows of {name} are read from a file, and no folder of benchmarks is given; "
            f"give a folder that holds {names}"
        )
    found = [folder / file for file in expected_files(name, split) if (folder / file).is_file()]
    if not found:
        raise DataError(f"{folder} does not hold the rows of {name} ({split}): put {names} there")
    return found[0]


def permuted(rows: Sequence[T]) -> list[T]:
    """Rows in the order that every run uses."""
    return [rows[i] for i in permutation(len(rows))]


def read_rows(path: Path, row_type: type[R]) -> list[R]:
    """Every row of a file, in order; DataError names file, line and what was expected."""
    columns = ", ".join(row_type.model_fields)
    rows = []
    for number, value in enumerate(_values(path), start=1):
        try:
            rows.append(row_type.model_validate(value))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the row"
            raise DataError(
                f"{path}, {_unit(path)} {number}: {where}: {first['msg']}; expected a row with "
                f"the columns {columns}, as the hub publishes it"
            ) from error
    if not rows:
        raise DataError(f"{path} holds no rows; expected rows with the columns {columns}")
    return rows


def _unit(path: Path) -> str:
    return "row" if path.suffix == ".parquet" else "line"


def _values(path: Path) -> Iterator[Any]:
    return _parquet_values(path) if path.suffix == ".parquet" else _json_values(path)


def _parquet_values(path: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet ({error}); fetch it again") from error


def _json_values(path: Path) -> Iterator[Any]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):  # noqa: B007  read by the error below
                yield json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: not JSON ({error}); expected one row a line"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {number} ({error})") from error
