"""Benchmarks by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from nanochat_core.benchmarks.base import SPLITS, Benchmark, GenerativeBenchmark, Split
from nanochat_core.benchmarks.files import Row, expected_files, read_benchmark_rows, read_rows
from nanochat_core.benchmarks.gsm8k import Gsm8k, Gsm8kRow
from nanochat_core.benchmarks.humaneval import HumanEval, HumanEvalRow
from nanochat_core.benchmarks.identity import make_identity
from nanochat_core.benchmarks.multiple_choice import ArcRow, MmluRow, MultipleChoice
from nanochat_core.benchmarks.names import BENCHMARKS, FileName
from nanochat_core.benchmarks.spelling import make_spelling
from nanochat_core.benchmarks.sums import make_sums
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.data.conversation_files import check_conversations
from nanochat_core.errors import ConfigError, UnknownNameError
from nanochat_core.sandbox.execution import Sandbox

ROW_TYPES: dict[FileName, type[Row]] = {
    "arc-easy": ArcRow,
    "arc-challenge": ArcRow,
    "mmlu": MmluRow,
    "gsm8k": Gsm8kRow,
    "humaneval": HumanEvalRow,
}
DEFAULT_COUNT = 200
"""Sums or words when nobody says how many."""

R = TypeVar("R", bound=Row)


def open_benchmark(
    name: str,
    split: Split,
    *,
    folder: Path | None = None,
    count: int = 0,
    seed: int = 42,
    facts: ModelFacts | None = None,
    sandbox: Sandbox | None = None,
) -> Benchmark:
    """A benchmark ready to be asked.

    `folder` holds the files of those that are read; `count` is how many problems are made or,
    of a file, kept (0: DEFAULT_COUNT are made, all are kept); `seed` draws the made ones; `facts`
    is for identity; `sandbox` for humaneval. Raises UnknownNameError for a name that is none,
    ConfigError for what is not given, DataError for files that cannot be read.
    """
    if name == "identity":
        return make_identity(split, count, facts)
    if name == "sums":
        return make_sums(split, count or DEFAULT_COUNT, seed)
    if name == "spelling":
        return make_spelling(split, count or DEFAULT_COUNT, seed)
    if name not in BENCHMARKS:
        raise UnknownNameError(f"benchmark={name!r} is none of {', '.join(BENCHMARKS)}")
    return _read(name, split, folder, count, sandbox)


def open_generative(
    name: str,
    split: Split,
    *,
    folder: Path | None = None,
    count: int = 0,
    seed: int = 42,
) -> GenerativeBenchmark:
    """A benchmark that is answered in text, and so can be learnt from; see `open_benchmark`.

    Raises ConfigError for one that is answered by a letter, or runs code.
    """
    benchmark = open_benchmark(name, split, folder=folder, count=count, seed=seed)
    if not isinstance(benchmark, GenerativeBenchmark):
        raise ConfigError(
            f"benchmark={name!r} is answered by a letter; give one that is answered in text: "
            "sums, spelling, gsm8k"
        )
    return benchmark


def check_files(folder: Path) -> int:
    """Read every file of a folder as what its name says; how many rows there are.

    Files of another name are own conversations, save zips (bundles of tasks). Raises DataError for
    a row of another form.
    """
    return sum(_checked_rows(path) for path in sorted(folder.iterdir()) if path.suffix != ".zip")


def _checked_rows(path: Path) -> int:
    for name, row_type in ROW_TYPES.items():
        if any(path.name in expected_files(name, split) for split in SPLITS):
            return len(read_rows(path, row_type))
    if any(path.name in expected_files("smoltalk", split) for split in SPLITS):
        return check_conversations(str(path), may_be_empty=True)
    return check_conversations(str(path))


def _read(
    name: str, split: Split, folder: Path | None, count: int, sandbox: Sandbox | None
) -> Benchmark:
    def rows(row_type: type[R]) -> Sequence[R]:
        found = read_benchmark_rows(folder, name, split, row_type)
        return found[: count or len(found)]

    if name == "gsm8k":
        return Gsm8k(rows(Gsm8kRow))
    if name == "humaneval":
        if sandbox is None:
            raise ConfigError("humaneval runs the code of the replies: give it a sandbox")
        return HumanEval(rows(HumanEvalRow), sandbox)
    if name == "mmlu":
        return MultipleChoice(name, [row.choice_question() for row in rows(MmluRow)])
    return MultipleChoice(name, [row.choice_question() for row in rows(ArcRow)])
