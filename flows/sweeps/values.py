"""Lists of values: `--set FIELD=a,b,c`, and how a value reads in the name of a point."""

import json
import re
from collections.abc import Sequence
from typing import Any

from flows.overrides import parse_assignments
from nanochat_core.errors import ConfigError

Value = bool | int | float | str
OPENING, CLOSING, QUOTES = "[{(", "]})", "\"'"


def split_values(text: str) -> list[str]:
    """`0.01,0.02` in two; commas inside of brackets and quotes part nothing.

    A quote is one at the start of a value and with its end: that of `it's` is a letter.
    """
    parts, depth, quote = [""], 0, ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES and _is_start(parts[-1], depth) and letter in text[place + 1 :]:
            quote = letter
        else:
            depth += (letter in OPENING) - (letter in CLOSING)
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _is_start(before: str, depth: int) -> bool:
    """Whether a value begins after this part of one; inside of brackets there are several."""
    before = before.rstrip()
    return not before or (depth > 0 and before[-1] in f"{OPENING},:")


def unquoted(text: str) -> str:
    """A value without the quotes around all of it."""
    inner = text[1:-1]
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES
    return inner if is_quoted and text[0] not in inner else text


def parse_sweep_assignments(
    texts: Sequence[str],
) -> tuple[dict[str, Any], dict[str, tuple[Value, ...]]]:
    """`--set` options of a sweep: what is the same for every point, and what is varied."""
    fixed: dict[str, Any] = {}
    varied: dict[str, tuple[Value, ...]] = {}
    for name, text in parse_assignments(texts).items():
        parts = split_values(text)
        if "" in parts and len(parts) > 1:
            raise ConfigError(
                f"--set {name}={text}: a value between two commas is missing; give values as in "
                f"--set {name}={','.join(filter(None, parts))}"
            )
        if len(parts) > 1:
            varied[name] = tuple(map(parsed, parts))
        else:
            fixed[name] = unquoted(text)
    return fixed, varied


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """`1,2,3` or `1e12,3e12` as numbers; whole ones stay whole."""
    numbers = [parsed(part) for part in split_values(text)]
    for number, part in zip(numbers, split_values(text), strict=True):
        if isinstance(number, bool | str):
            raise ConfigError(f"{option} {text}: expected numbers with commas, got {part!r}")
    return tuple(number for number in numbers if isinstance(number, int | float))


def parsed(text: str) -> Value:
    """A value from a command line: the number, text or truth value that it spells in JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return unquoted(text)
    return value if isinstance(value, bool | int | float | str) else text


def spelled(value: Value) -> str:
    """A value as it stands in the name of a point: `0.010` and `1e-2` alike, `1e12` short."""
    if isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.6g}"
    text = short if float(short) == value else repr(value)
    return re.sub(r"e([+-])0*", lambda match: "e" + match[1].strip("+"), text)
