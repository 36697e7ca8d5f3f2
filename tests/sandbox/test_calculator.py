"""The calculator: what it answers, and that nothing hostile gets an answer or takes long."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat_core.sandbox.calculator import MAX_CHARACTERS, calculate


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12+34", "46"),
        ("12 + 34", "46"),
        (" 7 ", "7"),
        ("2-5", "-3"),
        ("--5", "5"),
        ("+5", "5"),
        ("6*7", "42"),
        ("48/2", "24"),
        ("1/4", "0.25"),
        ("0.5*4", "2"),
        (".5+.25", "0.75"),
        ("7//2", "3"),
        ("-7//2", "-4"),
        ("7.5//2", "3"),
        ("-1/2*0", "0"),
        ("(1+2)*(3+4)", "21"),
        ("2+3*4", "14"),
        ("1,234+1", "1235"),
        ("10,000/8", "1250"),
        ("0.1+0.2", "0.30000000000000004"),
        ("99999999999999999999*9", "899999999999999999991"),
        ('"strawberry".count("r")', "3"),
        ("'banana'.count('an')", "2"),
        ('"it\'s".count( "\'" )', "1"),
        ('"a,b,c".count(",")', "2"),
        ('"Schön".count("ö")', "1"),
        ('"".count("x")', "0"),
    ],
)
def test_an_expression_has_this_value(expression: str, result: str) -> None:
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "   ",
        ",",
        "1/0",
        "1//0",
        "0.0/0",
        "2**3",
        "9**9**9",
        "2 ** 3",
        "9*" * 60 + "9",
        "1" * 21,
        "1+" * MAX_CHARACTERS + "1",
        "1" + " " * MAX_CHARACTERS,
        "(" * 120 + "1" + ")" * 120,
        "-" * 250 + "1",
        "(" * 200,
        ")(",
        "()",
        "(1)(2)",
        "1 2",
        "...",
        "1.2.3",
        "007",
        "1e5",
        "1_000",
        "0x10",
        "1j",
        "5%3",
        "1<2",
        "1;2",
        "1\n+1",
        "1+1#",
        "x",
        "abs(1)",
        "__import__('os')",
        "().__class__",
        "[1]",
        "{1}",
        "True",
        "'a'*9",
        "'a'",
        "lambda: 1",
        "\u0661+\u0661",  # digits of other scripts
        "\uff11+\uff11",
        "1\uff0b1",
        "\u00b2",
        "1\x00",
        "\ud800",
        '"a".upper()',
        '"a".count',
        '"a".count("b").real',
        '"a".count("a")+1',
        '"a\\n".count("n")',
        'f"{1}".count("1")',
        '"a" "b".count("b")',
        "\"a'.count('a')",
        '"a".count("a", 0)',
        '"' + "a" * MAX_CHARACTERS + '".count("a")',
    ],
)
def test_anything_else_has_no_value_and_is_refused_at_once(expression: str) -> None:
    start = time.perf_counter()
    assert calculate(expression) is None
    assert time.perf_counter() - start < 0.2


@given(st.integers(-(10**9), 10**9), st.sampled_from("+-*"), st.integers(-(10**9), 10**9))
def test_whole_numbers_agree_with_python(a: int, sign: str, b: int) -> None:
    expected = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert calculate(f"{a}{sign}({b})") == str(expected)


@given(st.text(st.sampled_from("0123456789+-*/(). ,\"'.count"), max_size=80))
def test_no_text_of_its_own_characters_breaks_it(expression: str) -> None:
    result = calculate(expression)
    assert result is None or len(result) <= 40


@given(st.text(max_size=40))
def test_no_text_at_all_breaks_it(expression: str) -> None:
    calculate(expression)


def test_threads_may_use_it_at_once() -> None:
    expressions = [f"{a}*{b}" for a in range(20) for b in range(20)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(calculate, expressions))
    assert results == [str(a * b) for a in range(20) for b in range(20)]
