"""How two recipes, two requests or any two records differ: one entry a field, by dotted name."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from nanochat_core.config.base import Config

_ABSENT = object()
_DIGEST_CHARACTERS = 64
_SHOWN_CHARACTERS = 60


class FieldChange(Config):
    """One field that is not the same; `name` is dotted, as `--set` takes it."""

    name: str
    kind: Literal["changed", "added", "removed"] = "changed"
    old: Any = None
    new: Any = None

    @property
    def text(self) -> str:
        """`depth: 2 -> 3`."""
        old = "(absent)" if self.kind == "added" else shown(self.old)
        new = "(absent)" if self.kind == "removed" else shown(self.new)
        return f"{self.name}: {old} -> {new}"


def shown(value: Any) -> str:
    """A value on one line: as JSON, digests cut to twelve characters, long ones cut in the middle.

    The difference of two long values may lie anywhere, so both ends stay.
    """
    if isinstance(value, str) and len(value) == _DIGEST_CHARACTERS and _is_hex(value):
        return f"{value[:12]}…"
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]}…{text[-half:]}"


def _is_hex(text: str) -> bool:
    return set(text) <= set("0123456789abcdef")


def changes(old: Any, new: Any, place: str = "") -> list[FieldChange]:
    """Every field that differs between two values of plain JSON.

    Objects of different `kind` (sources of text) are told by that and what they share. Lists of
    objects are compared by the objects' names where they have some, else by place.
    """
    if old is _ABSENT:
        return [FieldChange(name=place, kind="added", new=new)]
    if new is _ABSENT:
        return [FieldChange(name=place, kind="removed", old=old)]
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return _of_objects(old, new, place)
    if _is_list_of_objects(old) and _is_list_of_objects(new):
        return _of_objects(*_as_objects(old, new), place)
    return [] if _equal(old, new) else [FieldChange(name=place, old=old, new=new)]


def _of_objects(old: Mapping[str, Any], new: Mapping[str, Any], place: str) -> list[FieldChange]:
    names = list(dict.fromkeys([*old, *new]))
    if "kind" in old and "kind" in new and old["kind"] != new["kind"]:
        # What only one of two kinds has follows from the kind.
        names = [name for name in names if name in old and name in new]
    found = []
    for name in names:
        inner = f"{place}.{name}" if place else name
        found += changes(old.get(name, _ABSENT), new.get(name, _ABSENT), inner)
    return found


def _is_list_of_objects(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and all(isinstance(member, Mapping) for member in value)


def _as_objects(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    names = [[member.get("name") for member in members] for members in (old, new)]
    are_named = all(
        len(set(own)) == len(own) and all(isinstance(name, str) for name in own) for own in names
    )
    if are_named and list(names[0]) != list(names[1]) and set(names[0]) == set(names[1]):
        are_named = False  # only the order differs, which names would not show
    labels = names if are_named else [list(map(str, range(len(own)))) for own in names]
    return (
        dict(zip(map(str, labels[0]), old, strict=True)),
        dict(zip(map(str, labels[1]), new, strict=True)),
    )


def _equal(old: Any, new: Any) -> bool:
    # As the fingerprint sees them: 1, 1.0 and True are three values, a tuple is a list.
    return json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)
