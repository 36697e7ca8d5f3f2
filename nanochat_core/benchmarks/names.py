"""Names of the benchmarks, and what each of them needs (imports nothing heavy)."""

from typing import Literal, get_args

MadeName = Literal["identity", "sums", "spelling"]
FileName = Literal["arc-easy", "arc-challenge", "mmlu", "gsm8k", "humaneval"]
BenchmarkName = MadeName | FileName

MADE: tuple[MadeName, ...] = get_args(MadeName)
"""Made of nothing but numbers, words and the model's own facts."""
FROM_FILES: tuple[FileName, ...] = get_args(FileName)
"""Read from files."""
BENCHMARKS: tuple[BenchmarkName, ...] = (*MADE, *FROM_FILES)

OFFICIAL_TEST_ROWS: dict[str, int] = {
    "arc-easy": 2376,
    "arc-challenge": 1172,
    "mmlu": 14_042,
    "gsm8k": 1319,
    "humaneval": 164,
}
"""ChatCORE is about these five, each with this many test rows; fewer make another number."""
