"""Conversations for SFT out of files: the train rows of published sets, and one's own."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat_core.benchmarks.base import Benchmark
from nanochat_core.benchmarks.files import expected_files, file_of, read_rows
from nanochat_core.benchmarks.gsm8k import Gsm8k, Gsm8kRow
from nanochat_core.benchmarks.multiple_choice import ArcRow, MmluRow, MultipleChoice
from nanochat_core.conversation.pools import Pool
from nanochat_core.conversation.recipes import MixturePart, SetKind
from nanochat_core.conversation.types import Conversation
from nanochat_core.data.conversation_files import ConversationFile
from nanochat_core.errors import ConfigError, DataError


@dataclass(frozen=True)
class BenchmarkPool:
    """The problems of a benchmark with their reference answers."""

    benchmark: Benchmark

    def __len__(self) -> int:
        return len(self.benchmark)

    def pick(self, rows: Collection[int]) -> Iterator[tuple[int, Conversation]]:
        """Those of these rows."""
        return ((row, self.benchmark.conversation(row)) for row in sorted(rows))


def part_files(part: MixturePart) -> tuple[str, ...]:
    """Names that the file of a part may have; none of a part that is made."""
    if part.is_made:
        return ()
    return (part.file,) if part.kind == "jsonl" else expected_files(part.kind, "train")


def open_pool(part: MixturePart, folder: Path | None) -> Pool:
    """The conversations of a part, in the order of its file in the folder of benchmarks.

    Raises ConfigError without a folder, DataError for a file that is missing or malformed.
    """
    assert not part.is_made, "made conversations are in no file"
    if part.kind != "jsonl":
        # mypy knows kinds by name only.
        return open_set(part.kind, file_of(folder, part.kind, "train"))  # type: ignore[arg-type]
    if folder is None:
        raise ConfigError(
            f"the conversations of {part.file} are read from a file, and no folder of benchmarks "
            "is given; give a folder that holds it"
        )
    if not (folder / part.file).is_file():
        raise DataError(f"{folder} does not hold {part.file}: put it there")
    return ConversationFile(str(folder / part.file))


def open_set(kind: SetKind, path: Path) -> Pool:
    """The conversations of a published set, in the order of a file."""
    if kind == "smoltalk":
        # Published as it is: a turn without words is nobody's mistake here.
        return ConversationFile(str(path), may_be_empty=True)
    if kind == "gsm8k":
        return BenchmarkPool(Gsm8k(read_rows(path, Gsm8kRow)))
    rows: Sequence[MmluRow | ArcRow]
    rows = read_rows(path, MmluRow) if kind == "mmlu" else read_rows(path, ArcRow)
    return BenchmarkPool(MultipleChoice(kind, [row.choice_question() for row in rows]))
