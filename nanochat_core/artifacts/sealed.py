"""Small JSON records that carry the sha256 of their own body: no flipped bit goes unseen."""

import json
from collections.abc import Mapping
from typing import Any

from nanochat_core.artifacts.canonical import canonical_json, sha256_hex
from nanochat_core.errors import ConfigError, DamagedFileError

_SEAL = "sha256"


def seal(body: Mapping[str, Any]) -> bytes:
    """Canonical JSON of `body` and of the sha256 of its canonical JSON."""
    return canonical_json({**body, _SEAL: sha256_hex(canonical_json(dict(body)))})


def unseal(data: bytes, place: str) -> dict[str, Any]:
    """The body that `seal` was given; any other byte string raises DamagedFileError.

    `data` must be the one encoding of what it says: a changed space or key order is damage too.
    """
    try:
        value = json.loads(data)
        if type(value) is not dict or _SEAL not in value:
            raise DamagedFileError(f"{place} is damaged: it carries no sha256 of its own.")
        body = {key: part for key, part in value.items() if key != _SEAL}
        if seal(body) != data:
            raise DamagedFileError(f"{place} is damaged: it does not match its own sha256.")
    except (ValueError, RecursionError, ConfigError) as error:
        raise DamagedFileError(
            f"{place} is damaged: {len(data)} bytes that are no record ({error})."
        ) from error
    return body
