"""GSM8K: tool calls in the answers, and which replies are right."""

import math
import re

import pytest
from benchmark_tools import GSM8K_ROWS, real_file

from nanochat_core.benchmarks.files import read_rows
from nanochat_core.benchmarks.gsm8k import Gsm8k, Gsm8kRow, answer_parts
from nanochat_core.sandbox.calculator import calculate


def make_benchmark(answer: str) -> Gsm8k:
    return Gsm8k([Gsm8kRow(question="How many?", answer=answer)])


def test_calls_become_code_and_what_the_calculator_says() -> None:
    conversation = Gsm8k([Gsm8kRow(**GSM8K_ROWS[0])]).conversation(0)
    assert conversation.messages[0].text == GSM8K_ROWS[0]["question"]
    assert [(part.kind, part.text) for part in conversation.messages[1].parts] == [
        ("text", "She buys 2*4 = "), ("python", "2*4"), ("python_output", "8"),
        ("text", "8 eggs.\nNow she has "), ("python", "4+8"), ("python_output", "12"),
        ("text", "12.\n#### 12"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "reply", "score"),
    [
        ("#### 18", "She makes 9 * 2 = 18 dollars.\n#### 18", 1.0),
        ("#### 18", "#### 18.", 0.0),  # string equality: the stop belongs to the match
        ("#### 18", "#### 18.0", 0.0),
        ("#### 18", "#### 19", 0.0),
        ("#### 18", "She makes 18 dollars.", 0.0),
        ("#### 18", "", 0.0),
        ("#### 18", "####18", 0.0),
        ("#### 18", "#### 180", 0.0),
        ("#### 18", "#### $18", 0.0),
        ("#### 1,200", "#### 1200", 1.0),
        ("#### 1200", "so #### 1,200 in all", 1.0),
        ("#### 1234567", "#### 1,234,567", 1.0),
        ("#### -5", "#### -5", 1.0),
        ("#### -5", "#### 5", 0.0),
        ("#### 5", "#### -5", 0.0),
        ("#### 7", "#### 7\n#### 8", 1.0),  # the first of two answers counts
        ("#### 8", "#### 7\n#### 8", 0.0),
        ("#### 2.5", "#### 2.5", 1.0),
    ],
)
def test_a_reply_is_right_when_its_first_number_is_the_reference(
    reference: str, reply: str, score: float
) -> None:
    assert make_benchmark(reference).score(0, reply) == score


def test_the_reference_answers_are_right_and_those_of_others_wrong() -> None:
    benchmark = Gsm8k([Gsm8kRow(**row) for row in GSM8K_ROWS])
    said = [benchmark.conversation(i).messages[1].text for i in range(len(benchmark))]
    scores = [[benchmark.score(i, reply) for reply in said] for i in range(len(benchmark))]
    assert scores == [[float(i == j) for j in range(3)] for i in range(3)]


@pytest.mark.parametrize(
    ("file", "num_rows", "num_calls", "odd"),
    [
        ("gsm8k_test.jsonl", 1319, 4282, [("3/4", "3/4")]),
        ("gsm8k_train_head.jsonl", 3000, 9425, []),
    ],
)
def test_all_of_gsm8k_parses_and_agrees_with_the_calculator(
    file: str, num_rows: int, num_calls: int, odd: list[tuple[str, str]]
) -> None:
    """`odd` are the calls whose stated result is no decimal number; all others have our value."""
    rows = read_rows(real_file(file), Gsm8kRow)
    calls = []
    for row in rows:
        parts = answer_parts(row.answer)
        text = "".join(part.text for part in parts if part.kind == "text")
        assert text == re.sub("<<.*?>>", "", row.answer)
        assert Gsm8k([row]).score(0, text) == 1.0
        codes = [part.text for part in parts if part.kind == "python"]
        results = [part.text for part in parts if part.kind == "python_output"]
        calls += list(zip(codes, results, strict=True))
    assert (len(rows), len(calls)) == (num_rows, num_calls)
    found = []
    for code, stated in calls:
        value = calculate(code)
        assert value is not None
        if not re.fullmatch(r"-?[0-9]*\.?[0-9]+", stated):
            found.append((code, stated))
        else:
            # Dollars are stated as 7.00 where the calculator says 7.
            assert math.isclose(float(value), float(stated), rel_tol=1e-9)
    assert found == odd
