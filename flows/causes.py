"""From two artifacts of one station back to what first set them apart."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flows.differing import FieldChange, changes, shown
from flows.presets import STATIONS
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Manifest
from nanochat_core.config.base import Config
from nanochat_core.errors import ArtifactNotFoundError, DamagedFileError

if TYPE_CHECKING:
    # At run time it would bring Prefect, which comparing has no use for.
    from flows.dry_line import Planned

CauseKind = Literal[
    "recipe", "code version", "input", "result", "gone", "forced", "damaged", "none yet"
]
PLACES = ("hardware", "packages", "execution")
"""What provenance says of where and how; no part of what is asked for."""


class Cause(Config):
    """One reason why an artifact is not the one that was there before."""

    station: str
    kind: CauseKind
    change: FieldChange | None = None
    text: str


@dataclass(frozen=True)
class Side:
    """What an artifact is made of: a published one, or one that is asked for."""

    station: str
    code_version: int
    recipe: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Name -> digest."""
    refs: Mapping[str, ArtifactRef]
    manifest: Manifest | None = None
    unmade: frozenset[str] = frozenset()
    """Inputs that are not made yet, so that nothing can be said of them."""

    @classmethod
    def of(cls, manifest: Manifest) -> "Side":
        """Of an artifact that is there."""
        return cls(
            manifest.station,
            manifest.code_version,
            manifest.recipe,
            manifest.inputs,
            manifest.input_refs,
            manifest,
        )

    @classmethod
    def planned(cls, planned: "Planned") -> "Side":
        """Of what a run would ask for, as far as that is known."""
        made = {name: known.ref for name, known in planned.inputs.items() if known.ref}
        return cls(
            planned.station,
            planned.code_version,
            planned.recipe,
            {name: ref.digest for name, ref in made.items()},
            made,
            unmade=frozenset(planned.inputs) - frozenset(made),
        )


def own_causes(old: Side, new: Side) -> list[Cause]:
    """Recipe fields and code version that differ, apart from any input."""
    station = new.station
    found = []
    if old.code_version != new.code_version:
        change = FieldChange(name="code_version", old=old.code_version, new=new.code_version)
        text = f"code version of {station}: {old.code_version} -> {new.code_version}"
        found.append(Cause(station=station, kind="code version", change=change, text=text))
    return found + [
        Cause(station=station, kind="recipe", change=change, text=f"{station}.{change.text}")
        for change in changes(old.recipe, new.recipe)
    ]


def changed_inputs(old: Side, new: Side) -> list[str]:
    """Names of the inputs whose content differs, or that only one side has."""
    names = dict.fromkeys([*new.inputs, *old.inputs])
    known = [name for name in names if name not in new.unmade]
    return [name for name in known if old.inputs.get(name) != new.inputs.get(name)]


class Tracer:
    """Follows inputs back through a store, and one upstream of it if there is one."""

    def __init__(self, *stores: ArtifactStore) -> None:
        self._stores = stores
        self._known: dict[tuple[str, int], Manifest | None] = {}

    def manifest(self, ref: ArtifactRef) -> Manifest | None:
        """What is recorded of an artifact; None when it is gone or damaged."""
        key = (f"{ref.station}/{ref.fingerprint}", ref.manifest)
        if key not in self._known:
            self._known[key] = self._read(ref)
        return self._known[key]

    def _read(self, ref: ArtifactRef) -> Manifest | None:
        for store in self._stores:
            try:
                return store.manifest(ref)
            except (ArtifactNotFoundError, DamagedFileError):
                continue
        return None

    def first_causes(self, old: Side, new: Side) -> list[Cause]:
        """What first set the two apart: own fields, or those of whatever they were made from."""
        found = self._causes(old, new)
        once = [cause for i, cause in enumerate(found) if cause not in found[:i]]
        return sorted(once, key=lambda cause: _place(cause.station))

    def _causes(self, old: Side, new: Side) -> list[Cause]:
        found = own_causes(old, new)
        inputs = changed_inputs(old, new)
        for name in inputs:
            found += self.input_causes(old, new, name)
        if not found and not inputs:
            found.append(_other_result(old, new))
        return found

    def input_causes(self, old: Side, new: Side, name: str) -> list[Cause]:
        """Why one input is not what it was."""
        if name not in old.inputs or name not in new.inputs:
            word = "has" if name in new.inputs else "no longer has"
            text = f"{new.station} {word} the input {name}"
            return [Cause(station=new.station, kind="input", text=text)]
        found = [self._side(side.refs.get(name)) for side in (old, new)]
        before, after = found
        if before is None or after is None:
            which = " and ".join(
                word for word, side in (("old", before), ("new", after)) if side is None
            )
            text = f"the {which} {name} is not in the store any more, so its recipe is not known"
            return [Cause(station=name, kind="gone", text=text)]
        return self._causes(before, after)

    def _side(self, ref: ArtifactRef | None) -> Side | None:
        manifest = None if ref is None else self.manifest(ref)
        return None if manifest is None else Side.of(manifest)


def _place(station: str) -> int:
    return STATIONS.index(station) if station in STATIONS else len(STATIONS)


def _other_result(old: Side, new: Side) -> Cause:
    """The same was asked for, and something else came out."""
    assert old.manifest is not None, "an artifact that is only asked for has no result"
    assert new.manifest is not None, "an artifact that is only asked for has no result"
    before, after = old.manifest, new.manifest
    text = (
        f"{after.ref.short} was made again with another result: "
        f"{shown(before.digest)} -> {shown(after.digest)}"
    )
    if elsewhere := place_changes(before.provenance, after.provenance):
        text += f" ({'; '.join(change.text for change in elsewhere)})"
    return Cause(station=after.station, kind="result", text=text)


def place_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[FieldChange]:
    """How two records differ in machine, packages and execution."""
    before, after = ({name: side.get(name, {}) for name in PLACES} for side in (old, new))
    return changes(before, after)


def nearest(candidates: Iterable[Manifest], new: Side) -> Manifest | None:
    """The candidate with the fewest differences, the newest of equals; None without any."""

    def closeness(manifest: Manifest) -> tuple[int, str, int]:
        return (-distance(Side.of(manifest), new), manifest.created, manifest.number)

    return max(candidates, key=closeness, default=None)


def distance(old: Side, new: Side) -> int:
    """How many fields, code versions and inputs differ."""
    return len(own_causes(old, new)) + len(changed_inputs(old, new))
