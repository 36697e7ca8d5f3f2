"""Results as records that can be kept, and what makes two tasks the same."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eval_tools import choice_rows, write_bundle

from nanochat_core.errors import DataError
from nanochat_core.evals.bundle import Task, read_bundle, task_digest
from nanochat_core.evals.core_results import (
    CoreResult,
    ExampleResult,
    TaskResult,
    example_rows,
    predicted_option,
)


def make_task(folder: Path, rows: list[dict[str, Any]] | None = None, **fields: Any) -> Task:
    entry = {"label": "t", "rows": rows or choice_rows(5), "icl_task_type": "multiple_choice"}
    write_bundle(folder, [{**entry, **fields}])
    (task,) = read_bundle(folder).tasks
    return task


def make_result(task: Task) -> TaskResult:
    scores = [(0.1 + 0.2, 1 / 3), (math.inf, 2.5e-308), (math.pi, math.pi), (math.inf, math.inf)]
    examples = tuple(
        ExampleResult(row, 9 - row, 1, predicted_option("multiple_choice", pair), pair)
        for row, pair in enumerate(scores)
    )
    return TaskResult(task, examples, 3)


def test_a_record_is_strict_json_and_gives_the_result_back_bit_for_bit(tmp_path: Path) -> None:
    result = make_result(make_task(tmp_path))
    text = json.dumps(result.record(), allow_nan=False)
    again = TaskResult.from_record(result.task, json.loads(text))
    assert again == result
    assert again.summary() == result.summary()
    rows = [list(example_rows(CoreResult((r,), is_official=False))) for r in (result, again)]
    assert rows[0] == rows[1]


BAD_RECORDS: list[Any] = [
    {},
    {"cropped_prompts": 0, "examples": []},
    {"cropped_prompts": 0, "examples": [{"gold": 1}]},
    {"cropped_prompts": None, "examples": [1]},
    [],
]


@pytest.mark.parametrize("record", BAD_RECORDS)
def test_what_is_no_record_is_refused(tmp_path: Path, record: Any) -> None:
    with pytest.raises(DataError, match="task t"):
        TaskResult.from_record(make_task(tmp_path), record)


def test_a_digest_follows_what_is_asked_and_nothing_else(tmp_path: Path) -> None:
    same = task_digest(make_task(tmp_path / "a"))
    assert task_digest(make_task(tmp_path / "b", label="other")) == same
    changes: list[dict[str, Any]] = [
        {"rows": choice_rows(6)},
        {"rows": choice_rows(5)[::-1]},
        {"num_fewshot": [1]},
        {"continuation_delimiter": "  "},
        {"baseline": 24},
        {"icl_task_type": "schema"},
    ]
    tasks = [make_task(tmp_path / f"c{i}", **change) for i, change in enumerate(changes)]
    digests = {task_digest(task) for task in tasks}
    assert len(digests | {same}) == 1 + len(changes)


def test_blank_lines_and_line_ends_do_not_make_another_task(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    before = task_digest(task)
    text = task.data_path.read_text(encoding="utf-8")
    task.data_path.write_bytes(("\n" + text.replace("\n", "\r\n")).encode())
    assert len(task.read_examples()) == 5
    assert task_digest(task) == before


def test_kept_results_are_read_without_torch() -> None:
    code = (
        "import sys, nanochat_core.evals.core_results as r, nanochat_core.evals.core_prompts\n"
        "import nanochat_core.evals.shared_prefixes\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
