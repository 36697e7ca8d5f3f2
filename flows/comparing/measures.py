"""By which numbers models can be compared: those that were measured on the same text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_core.artifacts.newest import newest_manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Manifest
from nanochat_core.errors import ConfigError
from nanochat_core.report.comparing.sides import Curve, Metric
from nanochat_core.report.numbers import is_number


@dataclass(frozen=True)
class Family:
    """A recipe on some inputs, and its trainings under different seeds, the named one first."""

    name: str
    repeats: tuple[Manifest, ...]


@dataclass(frozen=True)
class Measure:
    """How a number came about: those of equal measures may be compared."""

    station: str
    told: str
    """Canonical text of all that decides which text or questions were read, and how."""
    tokens: int = 0
    """Asked for, of validation text."""


@dataclass(frozen=True)
class Measured:
    """One number of one model, and the artifact that has it."""

    value: float
    artifact: str


Curves = Mapping[ArtifactRef, Curve]
Measures = dict[str, dict[Measure, Measured]]
"""By the digest of the model: what is in it decides, not how often it was asked for."""


def find_measures(
    store: ArtifactStore, curves: Curves, models: Sequence[Manifest], metric: Metric
) -> Measures:
    """What base_eval and training have measured of these models, by how it was measured."""
    found: Measures = {model.digest: {} for model in models}
    by_digest = {model.digest: model for model in models}
    for scored in newest_manifests(store, "base_eval"):
        model = by_digest.get(scored.inputs.get("pretrain", ""))
        value = scored.metrics.get(metric.key)
        if model is not None and is_number(value):
            measure = _base_eval_measure(scored, model, metric)
            found[model.digest][measure] = Measured(float(value), scored.ref.short)
    for model in models:
        last = _last_of_training(model, curves[model.ref])
        if last is not None:
            found[model.digest][_training_measure(model)] = last
    return found


def _base_eval_measure(scored: Manifest, model: Manifest, metric: Metric) -> Measure:
    names: tuple[str, ...] = ("max_per_task", "core_bundle", "seed")
    inputs: tuple[str, ...] = ("benchmarks", "shards")
    told: dict[str, Any] = {}
    if metric.key == "val/bpb":
        names, inputs = ("validation_tokens",), ("tokens", "tokenizer")
        told = {"sequence_len": model.recipe["sequence_len"]}
    told |= {name: scored.recipe.get(name) for name in (*names, "compute_dtype")}
    told |= {name: scored.inputs.get(name) for name in inputs}
    told |= {"code_version": scored.code_version}
    tokens = int(scored.recipe["validation_tokens"])
    return Measure("base_eval", json.dumps(told, sort_keys=True), tokens)


def _training_measure(model: Manifest) -> Measure:
    told = {"sequence_len": model.recipe["sequence_len"], **model.inputs}
    return Measure("pretrain", json.dumps(told, sort_keys=True))


def _last_of_training(model: Manifest, curve: Curve) -> Measured | None:
    """What training measured after its last step."""
    if not curve or curve.steps[-1] != model.metrics.get("steps"):
        return None
    return Measured(curve.values[-1], model.ref.short)


def common_measure(families: Sequence[Family], measures: Measures, metric: Metric) -> Measure:
    """The one by which all sides can be compared: all with repeats, by base_eval, of most models.

    Repeats come first: which of two numbers is the better one matters less than whether the noise
    of both sides is known.
    """

    def counts(measure: Measure) -> list[int]:
        return [sum(measure in measures[m.digest] for m in each.repeats) for each in families]

    def worth(measure: Measure) -> tuple[bool, bool, bool, int, int, str]:
        number = counts(measure)
        is_scored = measure.station == "base_eval"
        repeated = (min(number) > 1, max(number) > 1)
        return (*repeated, is_scored, sum(number), measure.tokens, measure.told)

    known = dict.fromkeys(measure for found in measures.values() for measure in found)
    common = [measure for measure in known if all(counts(measure))]
    if common:
        return max(common, key=worth)
    raise ConfigError(_nothing_common(families, measures, metric))


def _nothing_common(families: Sequence[Family], measures: Measures, metric: Metric) -> str:
    without = [f.name for f in families if not any(measures[m.digest] for m in f.repeats)]
    if without:
        return (
            f"nothing has measured {metric.title} of {' and '.join(without)}; run them up to "
            "base_eval (--stop-after base_eval), or compare by another --metric"
        )
    return (
        f"{metric.title} of {' and '.join(f.name for f in families)} were not measured on the same "
        "text in the same way (tokens, tokenizer, sequence length, number of validation tokens or "
        "compute dtype differ), so that their difference would say nothing. Give them one "
        "base_eval with equal settings on equal text, or compare by tasks: --metric core or demo"
    )


def measure_words(measure: Measure) -> str:
    """How the numbers came about."""
    if measure.station == "base_eval":
        return "Final numbers are those of base_eval, the same text and questions for all."
    return (
        "Final numbers are the last that training measured, on the same text for all: base_eval "
        "has not scored enough of these models."
    )
