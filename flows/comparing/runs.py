"""Base models side by side: each is found by any name, and gathers its repeats by itself."""

import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flows.causes import Side as MadeOf
from flows.causes import Tracer, place_changes
from flows.comparing.measures import (
    Family,
    Measured,
    common_measure,
    find_measures,
    measure_words,
)
from flows.comparing.names import pretrain_of
from flows.comparing.repeat_command import repeat_command
from nanochat_core.artifacts.canonical import sha256_hex
from nanochat_core.artifacts.newest import newest_manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.translate import reading
from nanochat_core.artifacts.types import ArtifactRef, Manifest
from nanochat_core.config.job import METRICS_FILE
from nanochat_core.errors import ConfigError, DamagedFileError
from nanochat_core.report.comparing.sides import (
    Comparison,
    Curve,
    Metric,
    Repeat,
    Side,
    metric_of,
    read_curve,
)

LETTERS = string.ascii_uppercase
SEEDS = ("pretrain.seed", "pretrain.data.seed")
_TELLS_ON_TIME = re.compile(
    r"^(hardware\..*|execution\.(device|device_batch_size|ranks|nodes|threads|compile|compile_scope"
    r"|attention|reduction|activation_checkpointing))$"
)
"""Of where and how a run was made: what decides how long its steps take."""


def compare_models(
    store: ArtifactStore, names: Sequence[str], metric: str = "bpb", place: str = ""
) -> Comparison:
    """Everything that a comparison of these models needs, read from the store.

    `place` is what --store says, for commands that are told; "" where it is not given.
    Raises ArtifactNotFoundError for a name that stands for nothing, ConfigError for models whose
    numbers were not measured on the same text.
    """
    if not 1 <= len(names) <= len(LETTERS):
        raise ConfigError(f"got {len(names)} models; give 1 to {len(LETTERS)} of them")
    measured_by = metric_of(metric)
    named = [pretrain_of(store, name) for name in names]
    families, notes = _families(store, names, named)
    models = [model for family in families for model in family.repeats]
    curves, trouble = _curves(store, models, measured_by)
    measures = find_measures(store, curves, models, measured_by)
    measure = common_measure(families, measures, measured_by)
    tracer, first = Tracer(store), families[0]
    sides = tuple(
        Side(
            letter=letter,
            name=_told(family),
            repeats=tuple(
                _repeat(each, measures[each.digest].get(measure), curves[each.ref])
                for each in family.repeats
            ),
            differences=() if family is first else tuple(_differences(tracer, first, family)),
            repeat_command=repeat_command(store, family.repeats, place),
        )
        for letter, family in zip(LETTERS, families, strict=False)
    )
    notes += [*trouble, *_notes(sides, families)]
    return Comparison(measured_by, measure_words(measure), sides, tuple(notes))


def _families(
    store: ArtifactStore, names: Sequence[str], named: Sequence[Manifest]
) -> tuple[list[Family], list[str]]:
    """A family for each name; those that name repeats of each other are one."""
    others: dict[str, list[Manifest]] = {}
    for manifest in newest_manifests(store, "pretrain"):
        others.setdefault(family_key(manifest), []).append(manifest)
    found: dict[str, Family] = {}
    notes = []
    for name, manifest in zip(names, named, strict=True):
        key = family_key(manifest)
        if key in found:
            notes.append(f"{name} is a repeat of {found[key].name}: they differ in seeds at most")
            continue
        rest = [m for m in others.get(key, []) if m.fingerprint != manifest.fingerprint]
        found[key] = Family(name, (manifest, *rest))
    return list(found.values()), notes


def _told(family: Family) -> str:
    """The name that was given, with the model that it stands for."""
    model = family.repeats[0].ref.short
    return model if model.startswith(family.name) else f"{family.name} ({model})"


def family_key(manifest: Manifest) -> str:
    """Equal for models whose recipe, code version and inputs differ in seeds at most."""
    told = [seedless(manifest.recipe), manifest.code_version, manifest.inputs]
    return sha256_hex(json.dumps(told, sort_keys=True).encode())


def seedless(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of pretraining without its two seeds."""
    data = {name: value for name, value in recipe.get("data", {}).items() if name != "seed"}
    return {**{name: value for name, value in recipe.items() if name != "seed"}, "data": data}


def seeds_of(recipe: Mapping[str, Any]) -> dict[str, int]:
    """The seeds by the names that `--set` takes."""
    return dict(zip(SEEDS, (recipe["seed"], recipe["data"]["seed"]), strict=True))


def _repeat(model: Manifest, measured: Measured | None, curve: Curve) -> Repeat:
    numbers = model.metrics
    return Repeat(
        artifact=model.ref.short,
        digest=model.digest,
        seeds=seeds_of(model.recipe),
        final=None if measured is None else measured.value,
        measured_by="" if measured is None else measured.artifact,
        steps=int(numbers.get("steps", 0)),
        tokens=int(numbers.get("tokens", 0)),
        parameters=int(numbers.get("parameters", 0)),
        flops=float(numbers.get("total_training_flops", 0)),
        seconds=float(numbers.get("total_training_time", 0)),
        curve=curve,
    )


def _curves(
    store: ArtifactStore, models: Sequence[Manifest], metric: Metric
) -> tuple[dict[ArtifactRef, Curve], list[str]]:
    """The curve of every model, and what is damaged: that costs a curve, not the comparison."""
    curves, trouble = dict[ArtifactRef, Curve](), list[str]()
    for model in models:
        curves[model.ref] = Curve()
        try:
            text = read_record(store, model, METRICS_FILE)
        except DamagedFileError as error:
            trouble.append(f"{model.ref.short} has no curve: {error}")
            continue
        if text is not None:
            curves[model.ref] = read_curve(text.decode("utf-8"), metric.key)
    return curves, trouble


def read_record(store: ArtifactStore, manifest: Manifest, name: str) -> bytes | None:
    """One small file of an artifact, hashed; None without one. The weights stay where they are."""
    file = next((file for file in manifest.files if file.path == name), None)
    if file is None:
        return None
    path = f"{manifest.station}/{manifest.fingerprint}/{manifest.attempt}/{name}"
    with reading(path):
        data = store.files.read(path)
    if sha256_hex(data) != file.sha256:
        raise DamagedFileError(f"{path} is damaged; run the line again, which makes it anew")
    return data


def _differences(tracer: Tracer, first: Family, other: Family) -> Iterable[str]:
    """What was asked otherwise, of this station or of whatever it was made from."""
    old, new = (
        replace(MadeOf.of(family.repeats[0]), recipe=seedless(family.repeats[0].recipe))
        for family in (first, other)
    )
    return (cause.text for cause in tracer.first_causes(old, new))


def _notes(sides: Sequence[Side], families: Sequence[Family]) -> list[str]:
    """What a reader should know before trusting a number."""
    notes = []
    first = sides[0].repeats[0]
    notes += [
        f"{side.letter} is the same model as {sides[0].letter}, bit for bit: what differs between "
        "their recipes has changed nothing."
        for side in sides[1:]
        if side.repeats[0].digest == first.digest
    ]
    steps = {repeat.steps for side in sides for repeat in side.repeats}
    if len(steps) > 1:
        notes.append(
            "The sides trained for different numbers of steps: at equal steps, FLOPs or time a "
            "longer run has not lowered its rates yet, and looks worse than a run of that length."
        )
    varied = {
        name
        for side in sides
        for name in SEEDS
        if len({repeat.seeds[name] for repeat in side.repeats}) > 1
    }
    if varied and varied != set(SEEDS):
        notes.append(
            f"Repeats differ in {varied.pop()} alone, so the noise is that of this seed: the other "
            "would add some of its own."
        )
    lost = sum(repeat.final is None for side in sides for repeat in side.repeats)
    if lost:
        notes.append(f"{lost} repeats were not measured in this way, and count for curves only.")
    measured = {repeat.curve.steps for side in sides for repeat in side.repeats if repeat.curve}
    if len(measured) > 1:
        notes.append(
            "Not all curves were measured at the same steps (eval_every, or other horizons). Where "
            "one was not, a straight line stands for it, which is a little too high."
        )
    return notes + _place_notes(families)


def _place_notes(families: Sequence[Family]) -> list[str]:
    told = [manifest.provenance for family in families for manifest in family.repeats]
    different = {
        change.name: change.text
        for each in told[1:]
        for change in place_changes(told[0], each)
        if _TELLS_ON_TIME.match(change.name)
    }
    if not different:
        return []
    shown = "; ".join(list(different.values())[:3])
    return [f"Not all runs were made in the same way, so times may not compare: {shown}."]
