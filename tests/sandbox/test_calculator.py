"""The calculator: what it answers, and that nothing hostile gets an answer or takes long."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat_core.sandbox.calculator import MAX_CHARACTERS, calculate

EPSILON = Fraction(1, 2**52)


HOSTILE = [
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
    "2**-1",
    "2^3",
    "1<<99",
    "~1",
    "not 1",
    "1 if 1 else 2",
    "1 and 2",
    "1==1",
    "a:=1",
    "(a:=1)",
    "1//0.0",
    "(1-1)//(2-2)",
    "1/(0.1-0.1)",
    "99999999999999999999*" * 10 + "9",
    "9/" + "0.00000000000000000001/" * 11 + "1",
    "1e999",
    "inf",
    "nan",
    "-nan",
    "1.e5",
    "1..real",
    "(1).real",
    "(1).__class__",
    "(1)(",
    "((((((((((",
    "))))))))))",
    "(" * 51 + "1" + ")" * 51,
    "+" * 256,
    "1" + "+" * 200,
    "*1",
    "**1",
    "1*",
    "1//",
    "/1",
    "//1",
    "1///2",
    "*(1)",
    "(1*)",
    "1.1.1",
    ". 5",
    "1 .5",
    "0b1",
    "0o7",
    "1L",
    "0123",
    "$1",
    "1%",
    "50% of 10",
    "1 + one",
    "1 = 1",
    "1:2",
    "1,2;3",
    "`1`",
    "@1",
    "1@1",
    "# 1",
    "\\x31",
    "1\\",
    "\x00",
    "\u200b1",
    "1\u00a0+1",
    "\u0967+\u0967",
    "\u2212" + "1",
    "1\u00d72",
    "1\u00f72",
    "print(1)",
    "eval('1')",
    "exec('1')",
    "open('/etc/passwd').read()",
    "os.system('true')",
    "().__class__.__base__.__subclasses__()",
    "(lambda: 1)()",
    "[x for x in (1,)]",
    "*[1]",
    "{1: 2}",
    "yield 1",
    "await 1",
    "import os",
    "raise",
    "del x",
    "...+1",
    "b'a'.count(b'a')",
    "'a'.count('a').count('a')",
    "'a'.replace('a','b')",
    "'a'.__class__",
    "'a'.count",
    "'a'.count()",
    "'a'.count(1)",
    "'a'.count('a'",
    "'a'.count('a'))",
    "('a').count('a')",
    "'a' * 9 .count('a')",
    "''.join('a')",
    "'{0.__class__}'.format(1)",
    "'%s' % 1",
    "'a'\n.count('a')",
    "r'a'.count('a')",
    "'''a'''.count('a')",
    "'\\x61'.count('a')",
    "'a'.count('\\x61')",
]


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
        ("0.1+0.2", "0.3"),
        ("11/18*162", "99"),
        ("1/3", "0.333333333333"),
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


@pytest.mark.parametrize("expression", HOSTILE)
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


def random_whole(rng: random.Random, depth: int) -> tuple[str, Fraction]:
    """An expression of whole numbers, and its value by exact arithmetic of our own."""
    if depth == 0 or rng.random() < 0.2:
        number = rng.randrange(10 ** rng.randint(1, 6))
        return f"{number:,}" if rng.random() < 0.2 else str(number), Fraction(number)
    left, a = random_whole(rng, depth - 1)
    right, b = random_whole(rng, depth - 1)
    sign = rng.choice(["+", "-", "*", "//"])
    if sign == "//" and b == 0:
        sign = "+"
    values = {"+": a + b, "-": a - b, "*": a * b, "//": Fraction(a // b) if b else a}
    space = " " * rng.randrange(2)
    expression = f"({left}{space}{sign}{space}{right})"
    if rng.random() < 0.1:
        return f"-{expression}", -values[sign]
    return expression, values[sign]


def random_decimal(rng: random.Random, depth: int) -> tuple[str, Fraction, Fraction]:
    """An expression with division, its exact value, and how far rounding may take it."""
    if depth == 0 or rng.random() < 0.2:
        number = f"{rng.randrange(1, 10**4)}.{rng.randrange(10**3):03d}"
        return number, Fraction(number), Fraction(number) * EPSILON
    left, a, wrong_a = random_decimal(rng, depth - 1)
    right, b, wrong_b = random_decimal(rng, depth - 1)
    sign = rng.choice("+-*/" if abs(b) > 2 * wrong_b else "+-*")
    if sign == "/":
        value = a / b
        wrong = (wrong_a + abs(value) * wrong_b) / (abs(b) - wrong_b)
    elif sign == "*":
        value = a * b
        wrong = abs(a) * wrong_b + abs(b) * wrong_a + wrong_a * wrong_b
    else:
        value = a + b if sign == "+" else a - b
        wrong = wrong_a + wrong_b
    return f"({left}{sign}{right})", value, wrong + abs(value) * EPSILON


def whole_problems(seed: int, how_many: int) -> list[tuple[str, str | None]]:
    rng = random.Random(seed)
    problems: list[tuple[str, str | None]] = []
    while len(problems) < how_many:
        expression, value = random_whole(rng, rng.randint(1, 4))
        if len(expression) <= MAX_CHARACTERS:
            text = str(value)
            problems.append((expression, text if len(text) <= 40 else None))
    return problems


def test_a_thousand_expressions_of_whole_numbers_are_exact() -> None:
    problems = whole_problems(seed=0, how_many=1000)
    assert [calculate(expression) for expression, _ in problems] == [text for _, text in problems]


def test_a_thousand_expressions_with_division_are_right_but_for_rounding() -> None:
    rng = random.Random(1)
    for _ in range(1000):
        expression, value, wrong = random_decimal(rng, rng.randint(1, 4))
        result = calculate(expression)
        assert result is not None, expression
        # Twelve digits are printed.
        wrong += abs(value) * Fraction(1, 10**11)
        assert abs(Fraction(result) - value) <= wrong, expression
        assert not result.endswith(".0"), expression


@pytest.mark.parametrize("quotient", [0, 1, 24, 10**6, 2**53])
def test_an_integral_result_is_printed_without_a_point(quotient: int) -> None:
    assert calculate(f"{quotient * 2}/2") == str(quotient)
    assert calculate(f"0-{quotient}.0") == str(-quotient)
    assert calculate(f"{quotient}.000") == str(quotient)


def test_there_are_a_hundred_hostile_expressions() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 100


def test_threads_may_use_it_at_once() -> None:
    problems = whole_problems(seed=2, how_many=1000) + [(text, None) for text in HOSTILE]
    random.Random(3).shuffle(problems)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(calculate, [expression for expression, _ in problems]))
    assert results == [text for _, text in problems]
