"""Why a station is a hit or a miss, and why an artifact is what it is; `why_page` writes it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from flows.causes import (
    Cause,
    Side,
    Tracer,
    changed_inputs,
    nearest,
    own_causes,
)
from flows.dry_line import Planned
from flows.presets import Recipes
from nanochat_core.artifacts.newest import newest_manifests
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Manifest, Request
from nanochat_core.config.base import Config
from nanochat_core.errors import DamagedFileError
from tasks.release import STATION as RELEASE

WhyState = Literal["hit", "miss", "unknown", "published"]
_STATES: dict[str, WhyState] = {"cached": "hit", "miss": "miss", "unknown": "unknown"}


class Step(Config):
    """One station on the way to the one that was asked about."""

    station: str
    state: WhyState
    artifact: str = ""
    in_progress_step: int | None = None


class InputChange(Config):
    """One input that is not what it was, and what first made the difference."""

    name: str
    old: str | None = Field(description="digest")
    new: str | None = Field(description="digest")
    first_causes: tuple[Cause, ...]


class Origin(Config):
    """What is recorded of an artifact that is there."""

    ref: ArtifactRef
    created: str
    seconds: float | None
    run: str
    preset: str
    code_version: int
    fields: dict[str, Any] = Field(description="of the recipe, those that are not the default")
    inputs: dict[str, ArtifactRef]


class Explanation(Config):
    """Why one station is a hit or a miss, or how one artifact differs from the one before it."""

    station: str
    state: WhyState
    summary: str
    origin: Origin | None = None
    compared_with: Origin | None = Field(
        None, description="of a miss the nearest artifact, of a published one that before it"
    )
    own: tuple[Cause, ...] = ()
    inputs: tuple[InputChange, ...] = ()
    first_causes: tuple[Cause, ...] = ()
    waits_for: tuple["Explanation", ...] = Field(
        (), description="stations that are made first; what they give is not known"
    )
    upstream: tuple[Step, ...] = ()


class Explainer:
    """Explains the stations of one run, or the artifacts of one store."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._stores = (store,) if store.upstream is None else (store, store.upstream)
        self._tracer = Tracer(*self._stores)
        self._published: dict[str, list[Manifest]] = {}

    def station(self, planned: Planned) -> Explanation:
        """Why a station of a run is a hit or a miss, with the way there."""
        way = [
            Step(
                station=step.station,
                state=_STATES[step.state],
                artifact=step.ref.short if step.ref else "",
                in_progress_step=step.in_progress_step,
            )
            for step in ancestors(planned)
        ]
        found = self._planned(planned)
        return found.model_copy(update={"upstream": tuple(way)})

    def _planned(self, planned: Planned) -> Explanation:
        if planned.station == RELEASE:
            return _release(planned)
        if planned.is_forced:
            text = f"{planned.station} is made again, as --force or --start-from asks"
            return _for_one_reason(planned.station, "forced", text)
        if planned.state == "cached":
            return self._hit(planned)
        if planned.state == "unknown":
            return self._unknown(planned)
        return self._miss(planned)

    def _hit(self, planned: Planned) -> Explanation:
        assert planned.ref is not None, "a hit without an artifact"
        manifest = self._tracer.manifest(planned.ref)
        assert manifest is not None, "a hit without a manifest"
        place = (
            "in the store upstream, and is copied from there" if planned.is_upstream else "there"
        )
        return Explanation(
            station=planned.station,
            state="hit",
            summary=f"{planned.ref.short} is {place}",
            origin=origin(manifest),
        )

    def _miss(self, planned: Planned) -> Explanation:
        assert planned.request is not None, "a miss that asks for nothing"
        station, request = planned.station, planned.request
        if damages := [line for store in self._stores for line in damage_lines(store, request)]:
            text = f"{request.short} is damaged: {'; '.join(damages)}"
            return _for_one_reason(station, "damaged", text)
        return self._compared(planned, "miss")

    def _compared(self, planned: Planned, state: WhyState) -> Explanation:
        station, new = planned.station, Side.planned(planned)
        found = nearest(self._candidates(station), new)
        if found is None:
            text = f"there is no artifact of {station} in {self.store.url} yet"
            none = _for_one_reason(station, "none yet", text)
            return none.model_copy(update={"state": state})
        return self._against(found, new, state)

    def _candidates(self, station: str) -> list[Manifest]:
        if station not in self._published:
            found = [newest_manifests(store, station) for store in self._stores]
            self._published[station] = [manifest for each in found for manifest in each]
        return self._published[station]

    def _against(self, before: Manifest, new: Side, state: WhyState) -> Explanation:
        """What sets `new` apart from an artifact that is there."""
        old = Side.of(before)
        own = own_causes(old, new)
        inputs = [
            InputChange(
                name=name,
                old=old.inputs.get(name),
                new=new.inputs.get(name),
                first_causes=tuple(self._tracer.input_causes(old, new, name)),
            )
            for name in changed_inputs(old, new)
        ]
        first = self._tracer.first_causes(old, new) if own or inputs or new.manifest else []
        return Explanation(
            station=new.station,
            state=state,
            summary="; ".join(cause.text for cause in first),
            compared_with=origin(before),
            own=tuple(own),
            inputs=tuple(inputs),
            first_causes=tuple(first),
        )

    def _unknown(self, planned: Planned) -> Explanation:
        """Its inputs are not made yet; its own fields may settle the question all the same."""
        first = [step for step in ancestors(planned) if is_first_miss(step)]
        waits_for = tuple(self._planned(step) for step in first)
        names = " and ".join(step.station for step in first)
        found = self._compared(planned, "unknown")
        summary = f"because {names} {'is' if len(first) == 1 else 'are'} made first"
        if found.compared_with is None:
            summary += f", and besides: {found.summary}"
        elif found.first_causes:
            summary += ", and besides for other differences"
        causes = [cause for each in waits_for for cause in each.first_causes]
        causes += [cause for cause in found.first_causes if cause not in causes]
        return found.model_copy(
            update={
                "state": "miss" if found.first_causes else "unknown",
                "summary": summary,
                "waits_for": waits_for,
                "first_causes": tuple(causes),
            }
        )

    def artifact(self, ref: ArtifactRef) -> Explanation:
        """What made an artifact, and what sets it apart from the one that was made before it."""
        manifest = self.store.manifest(ref)
        before = self._made_before(manifest)
        if before is None:
            text = f"it is the first artifact of {ref.station} in {self.store.url}"
            found = Explanation(station=ref.station, state="published", summary=text)
        else:
            found = self._against(before, Side.of(manifest), "published")
        return found.model_copy(update={"origin": origin(manifest)})

    def _made_before(self, manifest: Manifest) -> Manifest | None:
        manifests = Manifests(self.store.files)
        older = []
        for place in manifests.artifacts(manifest.station):
            for number in manifests.numbers(*place):
                try:
                    older.append(manifests.read(*place, number))
                except DamagedFileError:
                    continue
        own = _when(manifest)
        return max((m for m in older if _when(m) < own), key=_when, default=None)


def _when(manifest: Manifest) -> tuple[str, int, str]:
    return (manifest.created, manifest.number, manifest.fingerprint)


def _for_one_reason(
    station: str, kind: Literal["forced", "damaged", "none yet"], text: str
) -> Explanation:
    cause = Cause(station=station, kind=kind, text=text)
    return Explanation(station=station, state="miss", summary=text, first_causes=(cause,))


def _release(planned: Planned) -> Explanation:
    """Names are no artifact; they are moved, or they stand."""
    (model,) = planned.inputs.values()
    what = model.ref.short if model.ref else f"what {model.station} will give"
    text = {
        "cached": f"the names of the model already stand for {what}",
        "miss": f"the names of the model would move to {what}",
        "unknown": f"the names of the model would move to {what}, which is not known yet",
    }[planned.state]
    return Explanation(station=RELEASE, state=_STATES[planned.state], summary=text)


def is_first_miss(planned: Planned) -> bool:
    """Whether this is where the line starts to work: all inputs are there, the artifact is not."""
    return planned.state == "miss" and all(i.state == "cached" for i in planned.inputs.values())


def damage_lines(store: ArtifactStore, request: Request) -> list[str]:
    """What is wrong with the artifact of a request; none where it is sound, or not there at all."""
    manifests = Manifests(store.files)
    manifest = manifests.newest(request.station, request.fingerprint)
    if manifest is not None:
        return [f"{damage.path} {damage.reason}" for damage in store.verify(manifest.ref)]
    found = []
    for number in manifests.numbers(request.station, request.fingerprint):
        try:
            manifests.read(request.station, request.fingerprint, number)
        except DamagedFileError as error:
            found.append(str(error))
    return found


def ancestors(planned: Planned) -> list[Planned]:
    """Every station on the way to this one, first things first."""
    found: dict[str, Planned] = {}
    for known in planned.inputs.values():
        for step in (*ancestors(known), known):
            found.setdefault(step.station, step)
    return list(found.values())


def origin(manifest: Manifest) -> Origin:
    """Where an artifact comes from."""
    provenance = manifest.provenance
    seconds = provenance.get("seconds")
    return Origin(
        ref=manifest.ref,
        created=manifest.created,
        seconds=None if seconds is None else float(seconds),
        run=str(provenance.get("run", "")),
        preset=str(provenance.get("preset", "")),
        code_version=manifest.code_version,
        fields=chosen_fields(manifest.station, manifest.recipe),
        inputs=manifest.input_refs,
    )


def chosen_fields(station: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that somebody chose; all of a recipe that this version cannot read."""
    field = Recipes.model_fields.get(station)
    kind: Any = None if field is None else field.annotation
    if kind is None:
        return dict(recipe)
    try:
        read = kind.model_validate(recipe)
    except ValidationError:
        return dict(recipe)
    chosen: dict[str, Any] = read.model_dump(mode="json", exclude_defaults=True)
    return chosen
