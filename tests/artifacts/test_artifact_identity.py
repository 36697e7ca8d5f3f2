"""Canonical JSON, fingerprints and sealed records."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_core.artifacts.canonical import canonical_json, with_stable_form
from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.artifacts.types import FileRecord, Request, result_digest
from nanochat_core.errors import ConfigError, DamagedFileError

FEW = settings(max_examples=40, deadline=None)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@FEW
@given(PLAIN)
def test_canonical_json_says_the_value_and_nothing_else(value: Any) -> None:
    encoded = canonical_json(value)
    assert json.loads(encoded) == value
    assert canonical_json(json.loads(encoded)) == encoded


@FEW
@given(st.dictionaries(st.text(max_size=8), PLAIN, max_size=5))
def test_key_order_does_not_matter(value: dict[str, Any]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_tuples_are_lists_and_there_are_no_spaces() -> None:
    assert canonical_json({"b": (1, 2.0), "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.0]}'


@pytest.mark.parametrize(
    "value", [{1}, Path("x"), math.nan, math.inf, b"x", object(), len, {1: 2}, 1j]
)
def test_values_without_a_stable_form_are_refused_and_named(value: Any) -> None:
    with pytest.raises(ConfigError, match="depth"):
        canonical_json({"depth": [value]})
    canonical_json(with_stable_form({"depth": [value]}))


def test_a_recipe_without_a_stable_form_is_refused_when_it_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="set"):
        Request(station="pretrain", code_version=1, recipe={"names": {"a"}})


def test_golden_fingerprint() -> None:
    recipe = {"depth": 2, "rate": 0.5, "dtype": "auto", "dims": (1, 2), "clip": None, "on": True}
    inputs = {"tokens": "ab" * 32, "tokenizer": "cd" * 32}
    request = Request(station="pretrain", code_version=3, recipe=recipe, inputs=inputs)
    assert request.fingerprint == "b58d576953988c1a6959273305fd259da450db58a11cfd6b63554903ccd75a03"
    assert request.short == "pretrain/b58d5769"
    written_by_hand = (
        b'{"code_version":3,"inputs":{"tokenizer":"'
        + b"cd" * 32
        + b'","tokens":"'
        + b"ab" * 32
        + b'"},"recipe":{"clip":null,"depth":2,"dims":[1,2],"dtype":"auto","on":true,"rate":0.5},'
        b'"station":"pretrain"}'
    )
    assert request.fingerprint == hashlib.sha256(written_by_hand).hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        {"station": "sft"},
        {"code_version": 2},
        {"recipe": {"depth": 3}},
        {"recipe": {"depth": 2.0}},
        {"inputs": {"tokens": "cd" * 32}},
        {"inputs": {"text": "ab" * 32}},
    ],
)
def test_everything_that_is_asked_for_is_in_the_fingerprint(changed: dict[str, Any]) -> None:
    asked: dict[str, Any] = {
        "station": "pretrain",
        "code_version": 1,
        "recipe": {"depth": 2},
        "inputs": {"tokens": "ab" * 32},
    }
    assert Request(**{**asked, **changed}).fingerprint != Request(**asked).fingerprint


def test_the_digest_is_that_of_the_result_files_only_in_any_order() -> None:
    first = FileRecord(path="a", role="result", bytes=1, sha256="a" * 64)
    second = FileRecord(path="b", role="result", bytes=1, sha256="b" * 64)
    log = FileRecord(path="log", role="record", bytes=1, sha256="c" * 64)
    assert result_digest([second, log, first]) == result_digest([first, second])
    assert result_digest([first]) != result_digest([first, second])


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../b", "", "a//b", "./a", "C:x", "a\\b"])
def test_paths_out_of_the_artifact_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        FileRecord(path=path, role="result", bytes=1, sha256="a" * 64)


@FEW
@given(st.dictionaries(st.text(max_size=8).filter(lambda k: k != "sha256"), PLAIN, max_size=3))
def test_a_sealed_record_comes_back_and_any_flipped_byte_is_noticed(body: dict[str, Any]) -> None:
    sealed = seal(body)
    assert unseal(sealed, "x") == body
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1 << (position % 8)
        with pytest.raises(DamagedFileError):
            unseal(bytes(changed), "x")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"sha256":1}', b'{"a":NaN,"sha256":""}', b"[" * 100_000]
)
def test_other_bytes_are_no_record(data: bytes) -> None:
    with pytest.raises(DamagedFileError, match="the alias x is damaged"):
        unseal(data, "the alias x")


def test_another_spelling_of_the_same_record_is_damage() -> None:
    sealed = seal({"a": 1, "b": 2})
    with pytest.raises(DamagedFileError):
        unseal(json.dumps(json.loads(sealed)).encode(), "x")
