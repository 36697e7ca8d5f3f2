"""Benchmark files are read in three formats, in one order, and never half."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from benchmark_tools import ARC_ROWS, GSM8K_ROWS, HUMANEVAL_ROWS, MMLU_ROWS, Rows, write_rows

from nanochat_core.benchmarks.files import SUFFIXES, Row, expected_files, read_rows
from nanochat_core.benchmarks.gsm8k import Gsm8kRow
from nanochat_core.benchmarks.humaneval import HumanEvalRow
from nanochat_core.benchmarks.multiple_choice import ArcRow, MmluRow
from nanochat_core.benchmarks.open import open_benchmark
from nanochat_core.errors import ConfigError, DataError

KINDS = {
    "gsm8k": (Gsm8kRow, GSM8K_ROWS),
    "arc": (ArcRow, ARC_ROWS),
    "mmlu": (MmluRow, MMLU_ROWS),
    "humaneval": (HumanEvalRow, HUMANEVAL_ROWS),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_come_out_of_every_format(tmp_path: Path, kind: str, suffix: str) -> None:
    row_type, rows = KINDS[kind]
    read = read_rows(write_rows(tmp_path / f"rows{suffix}", rows), row_type)
    columns = set(row_type.model_fields)
    expected = [{k: v for k, v in row.items() if k in columns} for row in rows]
    assert [row.model_dump() for row in read] == expected


def test_rows_are_asked_in_one_fixed_order(tmp_path: Path) -> None:
    rows = [{"question": f"Question {i}?", "answer": f"#### {i}"} for i in range(50)]
    write_rows(tmp_path / "gsm8k-test.jsonl", rows)
    benchmark = open_benchmark("gsm8k", "test", folder=tmp_path)
    order = np.random.default_rng(42).permutation(50)
    asked = [benchmark.conversation(i).messages[0].text for i in range(50)]
    assert asked == [f"Question {i}?" for i in order]
    few = open_benchmark("gsm8k", "test", folder=tmp_path, count=7)
    assert [few.conversation(i).messages[0].text for i in range(len(few))] == asked[:7]


def test_a_missing_file_is_named_in_all_its_forms(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_benchmark("arc-easy", "test", folder=tmp_path)
    assert all(name in str(caught.value) for name in expected_files("arc-easy", "test"))
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ConfigError, match=r"gsm8k-train\.jsonl"):
        open_benchmark("gsm8k", "train")


BAD_ROWS: dict[str, tuple[type[Row], Rows, str]] = {
    "no column": (Gsm8kRow, [{"question": "?"}], "answer"),
    "no number": (Gsm8kRow, [{"question": "?", "answer": "none"}], "#### NUMBER"),
    "a number for a text": (Gsm8kRow, [{"question": 3, "answer": "#### 3"}], "question"),
    "three choices": (MmluRow, [{**MMLU_ROWS[0], "choices": ["1", "2", "3"]}], "choices"),
    "answer 4": (MmluRow, [{**MMLU_ROWS[0], "answer": 4}], "answer"),
    "no such label": (ArcRow, [{**ARC_ROWS[0], "answerKey": "1"}], "answerKey='1'"),
    "labels left over": (
        ArcRow,
        [{**ARC_ROWS[0], "choices": {"text": ["a"], "label": ["A", "B"]}}],
        "choices.label",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_malformed_row_is_named_by_file_and_number(
    tmp_path: Path, name: str, suffix: str
) -> None:
    row_type, bad, what = BAD_ROWS[name]
    good = next(rows for kind, rows in KINDS.values() if kind is row_type)
    rows = bad if suffix == ".parquet" else [good[0], *bad]
    path = write_rows(tmp_path / f"rows{suffix}", rows)
    with pytest.raises(DataError) as caught:
        read_rows(path, row_type)
    where = "row 1" if suffix == ".parquet" else "line 2"
    assert f"{path}, {where}" in str(caught.value)
    assert what in str(caught.value)
    assert "expected" in str(caught.value)


def test_what_is_no_row_is_refused(tmp_path: Path) -> None:
    good = json.dumps(GSM8K_ROWS[0])
    texts = {"not JSON": good + "\n{oops\n", "a list": good + "\n[1]\n", "blank": good + "\n\n"}
    for text in texts.values():
        path = tmp_path / "rows.jsonl"
        path.write_text(text)
        with pytest.raises(DataError, match="line 2"):
            read_rows(path, Gsm8kRow)
    path.write_text("")
    with pytest.raises(DataError, match="no rows"):
        read_rows(path, Gsm8kRow)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in GSM8K_ROWS * 100).encode()
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(text)[:-20])
    other = tmp_path / "other.jsonl.gz"
    other.write_bytes(text)
    parquet = tmp_path / "rows.parquet"
    parquet.write_bytes(text)
    for path in (cut, other, parquet):
        with pytest.raises(DataError, match=path.name):
            read_rows(path, Gsm8kRow)
