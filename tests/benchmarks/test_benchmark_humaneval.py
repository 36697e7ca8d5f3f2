"""HumanEval: a reply passes when the tests ran to their end, and only then."""

from functools import cache

import pytest
from benchmark_tools import HUMANEVAL_ROWS, real_file

from nanochat_core.benchmarks.files import read_rows
from nanochat_core.benchmarks.humaneval import (
    HumanEval,
    HumanEvalRow,
    code_of,
    leading_imports,
    passes,
)
from nanochat_core.benchmarks.open import open_benchmark
from nanochat_core.errors import ConfigError
from nanochat_core.sandbox.execution import Sandbox, SandboxLimits

ROW = HumanEvalRow(**HUMANEVAL_ROWS[0])
SHORT = SandboxLimits(wall_seconds=0.5)
RIGHT = "def double(numbers):\n    return [2 * n for n in numbers]"


@cache
def sandbox() -> Sandbox:
    """Any tier: what runs here is written by us."""
    return Sandbox.open(allow_weak=True)


@pytest.mark.parametrize(
    "reply",
    [
        RIGHT,
        f"```python\n{RIGHT}\n```",
        f"Here it is:\n\n```\n{RIGHT}\n```\nIt doubles.\n```python\nraise ValueError\n```",
        f"```py\n{RIGHT}```",
        "def double(numbers: List[int]) -> List[int]:\n    return [2 * n for n in numbers]",
        "import random\n\ndef double(numbers):\n    return [math.prod((2, n)) for n in numbers]",
        ROW.prompt + ROW.canonical_solution,
        f"{RIGHT}\n\nprint = None\nimport sys\nsys.stdout = None",
        f"{RIGHT}\n\nprint('no newline', end='')",
    ],
)
def test_right_code_passes(reply: str) -> None:
    assert passes(ROW, reply, sandbox())


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "def double(numbers):\n    return numbers",
        "def double(numbers):\n    return [2 *",
        "def triple(numbers):\n    return numbers",
        "    return [2 * n for n in numbers]",
        f"{RIGHT}\nraise SystemExit(0)",
        f"{RIGHT}\nexit(0)",
        f"{RIGHT}\nimport os\nos._exit(0)",
        f"{RIGHT}\nimport os, sys\nprint('ok')\nsys.stdout.flush()\nos._exit(0)",
        "def double(numbers):\n    import sys\n    sys.exit(0)",
        "def double(numbers):\n    import os\n    os._exit(0)",
        "import os\nif os.fork():\n    os._exit(0)\n" + RIGHT,
        f"```python\nbroken(\n```\n\n```python\n{RIGHT}\n```",
    ],
)
def test_wrong_code_and_code_that_leaves_before_the_tests_fail(reply: str) -> None:
    assert not passes(ROW, reply, sandbox())


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)"])
def test_code_that_never_ends_fails_in_time(code: str) -> None:
    assert not passes(ROW, f"{RIGHT}\n{code}", sandbox(), limits=SHORT)


def test_code_that_takes_too_much_memory_fails() -> None:
    hog = f"kept = bytearray({{}} * 2**20)\n{RIGHT}"
    assert passes(ROW, hog.format(64), sandbox())
    assert not passes(ROW, hog.format(512), sandbox())


def test_imports_of_the_prompt_end_where_its_code_begins() -> None:
    assert leading_imports(ROW.prompt) == "from typing import List\nimport math"
    assert leading_imports("\n\ndef f():\n    import os\n") == ""


def test_the_first_fenced_block_is_the_code() -> None:
    assert code_of("text\n```python\na = 1\n```\n```\nb = 2\n```") == "a = 1"
    assert code_of("  a = 1\n") == "a = 1"
    assert code_of("```python\na = 1") == "```python\na = 1"


def test_the_reference_passes_and_nothing_runs_without_a_sandbox() -> None:
    benchmark = HumanEval([ROW], sandbox())
    question, answer = benchmark.conversation(0).messages
    assert question.text == ROW.prompt
    assert benchmark.score(0, answer.text) == 1.0
    assert benchmark.score(0, question.text) == 0.0
    with pytest.raises(ConfigError, match="sandbox"):
        open_benchmark("humaneval", "test")


@pytest.mark.long
def test_all_reference_solutions_pass_and_empty_ones_do_not() -> None:
    rows = read_rows(real_file("HumanEval.jsonl.gz"), HumanEvalRow)
    assert len(rows) == 164
    benchmark = HumanEval(rows, Sandbox.open(allow_weak=True))
    for index, row in enumerate(rows):
        fenced = f"```python\n{row.prompt}{row.canonical_solution}\n```"
        assert benchmark.score(index, fenced) == 1.0, row.task_id
        if index % 8 == 0:
            assert benchmark.score(index, row.prompt + "    return None") == 0.0, row.task_id
