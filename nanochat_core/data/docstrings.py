"""Documentation strings of a Python source file, found by its syntax tree."""

import ast
import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Docstring(NamedTuple):
    """One documentation string; `name` is "" for the module's own and for attached ones."""

    name: str
    is_class: bool
    text: str


_ATTACHING_CALLS = frozenset({"add_newdoc", "add_docstr"})


@contextmanager
def fast_parsing() -> Iterator[None]:
    """Parse without the cyclic garbage collector, which would walk every tree: a quarter faster."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            # Old code has invalid escapes in its strings; that is not ours to report.
            warnings.simplefilter("ignore")
            yield
    finally:
        if was_enabled:
            gc.enable()


def _own_docstring(body: list[ast.stmt]) -> str:
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        value = body[0].value.value
        return value if isinstance(value, str) else ""
    return ""


def _inner_bodies(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    for field in ("body", "orelse", "finalbody"):
        if body := getattr(node, field, None):
            yield body
    for handler in getattr(node, "handlers", ()):
        yield handler.body


def _definitions(body: list[ast.stmt], prefix: str) -> Iterator[Docstring]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = prefix + node.name
            if text := _own_docstring(node.body):
                yield Docstring(name, isinstance(node, ast.ClassDef), text)
            yield from _definitions(node.body, f"{name}.")
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            for inner in _inner_bodies(node):
                yield from _definitions(inner, prefix)


def _attached(tree: ast.Module) -> Iterator[Docstring]:
    """Texts handed to calls that attach documentation to objects written in C."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            called = getattr(function, "attr", None) or getattr(function, "id", None)
            if called in _ATTACHING_CALLS and node.args:
                for part in ast.walk(node.args[-1]):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield Docstring("", False, part.value)


def docstrings(source: bytes) -> list[Docstring]:
    """Documentation strings of a file in source order; none when it is not valid Python."""
    if b'"""' not in source and b"'''" not in source:
        return []
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = [Docstring("", False, text)] if (text := _own_docstring(tree.body)) else []
    found += _definitions(tree.body, "")
    if any(call.encode() + b"(" in source for call in _ATTACHING_CALLS):
        found += _attached(tree)
    return found
