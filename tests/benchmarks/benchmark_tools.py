"""Small benchmark files for the tests, in the forms that the hub publishes."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Rows = list[dict[str, Any]]

GSM8K_ROWS: Rows = [
    {
        "question": f"Ann has {n} eggs and buys twice as many. How many has she?",
        "answer": f"She buys 2*{n} = <<2*{n}={2 * n}>>{2 * n} eggs.\n"
        f"Now she has <<{n}+{2 * n}={3 * n}>>{3 * n}.\n#### {3 * n:,}",
    }
    for n in (4, 50, 600)
]
ARC_ROWS: Rows = [
    {
        "id": "one",
        "question": "What is hot?",
        "choices": {"text": ["ice", "the sun", "snow", "rain"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    {
        "id": "two",
        "question": "What swims?",
        "choices": {"text": ["a fish", "a cat", "a tree", "a stone"], "label": list("1234")},
        "answerKey": "1",
    },
    {
        "id": "three",
        "question": "What flies?",
        "choices": {"text": ["a", "b", "c", "d", "a bird"], "label": list("ABCDE")},
        "answerKey": "E",
    },
]
MMLU_ROWS: Rows = [
    {"question": "Two and two?", "subject": "sums", "choices": ["3", "4", "5", "6"], "answer": 1}
]
HUMANEVAL_ROWS: Rows = [
    {
        "task_id": "HumanEval/0",
        "prompt": "# From a test.\nfrom typing import List\nimport math\n\n\n"
        "def double(numbers: List[int]) -> List[int]:\n"
        '    """ Each number twice as large.\n    import nothing\n    """\n',
        "canonical_solution": "    return [2 * number for number in numbers]\n",
        "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n"
        "    assert candidate([1, 2]) == [2, 4]\n    assert candidate([]) == []\n\n",
        "entry_point": "double",
    }
]


def write_rows(path: Path, rows: Rows) -> Path:
    """A file of rows in the format that its name says."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def real_file(name: str) -> Path:
    """A file of the folder of real data; skips the test where there is none."""
    folder = os.environ.get("NANOCHAT_TEST_DATA")
    if not folder:
        pytest.skip("NANOCHAT_TEST_DATA is not set: no real benchmarks")
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"NANOCHAT_TEST_DATA holds no {name}")
    return path
