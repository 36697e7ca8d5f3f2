"""One byte string for one value: what fingerprints, digests and sealed records are hashed from."""

import hashlib
import json
import math
from typing import Any

from nanochat_core.errors import ConfigError

_PLAIN_TYPES = (str, bool, int, type(None))


def sha256_hex(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one JSON encoding of `value`: sorted keys, no spaces, ASCII only.

    Dictionaries with string keys, lists, tuples (as lists), strings, integers, booleans, None and
    finite floats have one. Anything else (sets, paths, callables, numpy scalars, NaN) raises
    ConfigError naming the place.
    """
    return json.dumps(
        _checked(value, "value"), sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode("ascii")


def _checked(value: Any, place: str) -> Any:
    """`value` with tuples as lists; the first part without a stable form is refused."""
    if type(value) in _PLAIN_TYPES:
        return value
    if type(value) is float:
        if math.isfinite(value):
            return value
        raise ConfigError(f"{place} is {value}, which has no stable form; use a finite number.")
    if type(value) in (list, tuple):
        return [_checked(part, f"{place}[{i}]") for i, part in enumerate(value)]
    if type(value) is dict:
        return {_key(key, place): _checked(part, f"{place}.{key}") for key, part in value.items()}
    raise ConfigError(
        f"{place} is {type(value).__name__} {value!r:.80}, which has no stable form; "
        "use strings, finite numbers, booleans, None, lists and dictionaries with string keys."
    )


def _key(key: Any, place: str) -> str:
    if type(key) is not str:
        raise ConfigError(f"{place} has the key {key!r:.80}; keys must be strings.")
    return key


def with_stable_form(value: Any) -> Any:
    """`value` with every part that has no stable form replaced by its text.

    For what is only recorded (provenance): a path or a NaN in it must not lose hours of work.
    """
    if type(value) in (list, tuple):
        return [with_stable_form(part) for part in value]
    if type(value) is dict:
        return {str(key): with_stable_form(part) for key, part in value.items()}
    if type(value) in _PLAIN_TYPES or (type(value) is float and math.isfinite(value)):
        return value
    return str(value)
