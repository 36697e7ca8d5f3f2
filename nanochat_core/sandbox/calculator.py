"""The calculator that a chat model calls between `python_start` and `python_end` (RECIPE 7).

Arithmetic is read as a syntax tree and computed node by node; nothing is ever executed. The
length of the expression bounds time and size, so there is no timer, and any thread may call it.
"""

import ast
import math
import operator
import re
from collections.abc import Callable

MAX_CHARACTERS = 256
MAX_DIGITS = 20
MAX_PARENTHESES = 50
MAX_NESTING = 150
MAX_RESULT_CHARACTERS = 40
SIGNIFICANT_DIGITS = 12

Number = int | float

_ALLOWED = frozenset("0123456789+-*/(). ")
_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_QUOTED = r"""("[^"\\\r\n\0]*"|'[^'\\\r\n\0]*')"""
_COUNT = re.compile(rf"{_QUOTED}\.count\(\s*{_QUOTED}\s*\)")


class _RefusedError(Exception):
    """An expression that the calculator does not take."""


def calculate(expression: str) -> str | None:
    """Result of an expression as text, or None when there is none.

    Takes numbers with `+ - * / //` and parentheses, commas left out, and
    `"text".count("x")`. Fractions are rounded to 12 digits; integral results have no `.0`. None for
    anything else: division by zero, powers, names, too long, too deep, too large.
    """
    if len(expression) > MAX_CHARACTERS:
        return None
    count = _COUNT.fullmatch(expression.strip())
    if count:
        text, wanted = (quoted[1:-1] for quoted in count.groups())
        return str(text.count(wanted))
    expression = expression.replace(",", "").strip()
    if not expression or not _ALLOWED.issuperset(expression):
        return None
    if expression.count("(") > MAX_PARENTHESES:
        return None
    if any(len(digits) > MAX_DIGITS for digits in re.findall(r"[0-9]+", expression)):
        return None
    try:
        tree = ast.parse(expression, mode="eval")
        return _as_text(_value(tree.body, 0))
    except (SyntaxError, _RefusedError, ArithmeticError, RecursionError, MemoryError):
        # A parser that runs out of its own stack says so with MemoryError or RecursionError.
        return None


def _value(node: ast.expr, nesting: int) -> Number:
    if nesting > MAX_NESTING:
        raise _RefusedError
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left, nesting + 1), _value(node.right, nesting + 1)
        return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand, nesting + 1))
    raise _RefusedError


def _as_text(value: Number) -> str | None:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        if not value.is_integer():
            # 11/18*162 is 99, and a model must not learn the noise of binary fractions.
            value = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
        if value.is_integer():
            value = int(value)
    text = str(value)
    return text if len(text) <= MAX_RESULT_CHARACTERS else None
