"""Two recipes are told apart by the names of the fields that differ, and by nothing else."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.differing import changes, shown
from nanochat_core.artifacts.canonical import canonical_json


def texts(old: Any, new: Any) -> list[str]:
    return [change.text for change in changes(old, new)]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"depth": 2}, {"depth": 3}, ["depth: 2 -> 3"]),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 1, "d": 3}}}, ["a.b.d: 2 -> 3"]),
        ({"a": 1}, {"a": 1, "b": None}, ["b: (absent) -> null"]),
        ({"a": 1, "b": [1]}, {"a": 1}, ["b: [1] -> (absent)"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a: [1, 2] -> [1, 3]"]),
        ({"a": {}}, {"a": {"b": 1}}, ["a.b: (absent) -> 1"]),
        ({"a": []}, {"a": [{"b": 1}]}, ['a.0: (absent) -> {"b": 1}']),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 3}]}, ["a.1.b: 2 -> 3"]),
        ({"a": {"b": 1}}, {"a": "auto"}, ['a: {"b": 1} -> "auto"']),
    ],
)
def test_a_field_is_named_as_set_names_it(old: Any, new: Any, expected: list[str]) -> None:
    assert texts(old, new) == expected


def test_what_the_fingerprint_tells_apart_is_told_apart() -> None:
    assert texts({"a": 1, "b": 1, "c": 0}, {"a": 1.0, "b": True, "c": False}) == [
        "a: 1 -> 1.0",
        "b: 1 -> true",
        "c: 0 -> false",
    ]


def test_files_are_compared_by_their_names() -> None:
    files = [{"name": name, "bytes": i} for i, name in enumerate(("a.txt", "b.txt", "c.txt"))]
    assert texts({"files": files}, {"files": files[1:]}) == [
        'files.a.txt: {"name": "a.txt", "bytes": 0} -> (absent)'
    ]
    other = [files[0], {"name": "b.txt", "bytes": 9}, files[2]]
    assert texts({"files": files}, {"files": other}) == ["files.b.txt.bytes: 1 -> 9"]


def test_another_order_of_the_same_files_is_a_difference() -> None:
    files = [{"name": "a.txt"}, {"name": "b.txt"}]
    assert texts({"files": files}, {"files": files[::-1]}) == [
        'files.0.name: "a.txt" -> "b.txt"',
        'files.1.name: "b.txt" -> "a.txt"',
    ]


def test_another_kind_of_source_is_one_difference() -> None:
    harvest = {"kind": "harvest", "versions": {"numpy": "2.0"}, "python": "3.12"}
    files = {"kind": "files", "files": [{"name": "a.txt"}]}
    assert texts({"source": harvest}, {"source": files}) == ['source.kind: "harvest" -> "files"']


def test_long_values_are_cut_and_digests_keep_their_start() -> None:
    assert shown("0123456789abcdef" * 4) == "0123456789ab…"
    text = shown("x" * 500)
    assert len(text) < 70
    assert "…" in text


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, "a", "b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "name", "kind"]), inner, max_size=3)
    ),
    max_leaves=8,
)
recipes = st.dictionaries(st.sampled_from(["a", "b", "kind"]), plain, max_size=3)


@settings(max_examples=40, deadline=None)
@given(recipes, recipes)
def test_a_difference_is_found_exactly_where_the_fingerprints_differ(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert (changes(old, new) == []) == (canonical_json(old) == canonical_json(new))
