"""What a model card says, from the manifests of a model, of its ancestors and of evaluations."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat_core.artifacts.types import Manifest
from nanochat_core.errors import CheckpointError
from nanochat_core.export.model_card import (
    CardArtifact,
    CardMaterial,
    CardModel,
    CardScore,
    scores_of,
)
from nanochat_core.tokenizer.split_patterns import pattern_name

EVALUATIONS = {"pretrain": "base_eval", "sft": "chat_eval_sft", "rl": "chat_eval_rl"}
"""Which station measures the models of a station."""
CONFIG_FILE = "config.json"
SHOWN_NAMES = 5


def card_material(
    model: Manifest, folder: Path, lineage: Sequence[Manifest], evaluations: Sequence[Manifest]
) -> CardMaterial:
    """The card of a model: its manifest and folder, what it was made from, and what measured it.

    `evaluations` may be any; of those of this model and of its base model the most thorough counts.
    """
    config = _read_config(folder)
    facts, shape = config.get("facts", {}), config["model"]
    made = {manifest.station: manifest for manifest in lineage}
    base = made.get("pretrain", model)
    return CardMaterial(
        name=str(facts.get("name", "nanochat")),
        model_artifact=_artifact(model),
        model=CardModel(
            depth=shape["n_layer"],
            width=shape["n_embd"],
            heads=shape["n_head"],
            kv_heads=shape["n_kv_head"],
            sequence_len=shape["sequence_len"],
            vocab_size=shape["vocab_size"],
            window_pattern=shape["window_pattern"],
            parameters=int(facts.get("num_parameters") or base.metrics.get("parameters", 0)),
        ),
        split_pattern=_split_pattern(made.get("tokenizer")),
        data=str(facts.get("data", "")),
        sources=_source_lines(made.get("shards")),
        training=_training([one for one in (*lineage, model) if one.station in EVALUATIONS]),
        scores=tuple(_scores(model, base, evaluations)),
        lineage=tuple(map(_artifact, _without_repeats([*lineage, model]))),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
        if {"n_layer", "n_embd", "n_head", "n_kv_head"} <= config["model"].keys():
            return config
        raise KeyError("the shape of the model")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as the description of a model ({error}); make the model again"
        ) from error


def _artifact(manifest: Manifest) -> CardArtifact:
    return CardArtifact(
        station=manifest.station,
        fingerprint=manifest.fingerprint,
        digest=manifest.digest,
        created=manifest.created,
    )


def _without_repeats(manifests: Sequence[Manifest]) -> list[Manifest]:
    return list({(one.station, one.fingerprint): one for one in manifests}.values())


def _scores(model: Manifest, base: Manifest, evaluations: Sequence[Manifest]) -> list[CardScore]:
    found: list[CardScore] = []
    for measured in _without_repeats([model, base]):
        station = EVALUATIONS.get(measured.station, "")
        its = [
            one
            for one in evaluations
            if one.station == station and one.inputs.get(measured.station) == measured.digest
        ]
        if its:
            best = max(its, key=_thoroughness)
            found += scores_of(best.metrics, station, best.ref.short)
    return found


def _thoroughness(evaluation: Manifest) -> tuple[float, float, int, str]:
    """How much was asked and read; the newest of equals. A quick look hides no whole evaluation."""
    metrics, recipe = evaluation.metrics, evaluation.recipe
    asked = sum(float(value) for name, value in metrics.items() if name.endswith("/asked"))
    per_task = recipe.get("max_per_task") or math.inf
    return asked, per_task, recipe.get("validation_tokens", 0), evaluation.created


def _split_pattern(tokenizer: Manifest | None) -> str:
    return "" if tokenizer is None else pattern_name(str(tokenizer.recipe.get("split_pattern", "")))


def _training(models: Sequence[Manifest]) -> dict[str, str]:
    """A line for each station that trained, in the order in which they did."""
    lines = {}
    for one in _without_repeats(models):
        numbers = [text.format(one.metrics[name]) for name, text in _NUMBERS if name in one.metrics]
        dtype = one.provenance.get("compute_dtype")
        lines[_TITLES[one.station]] = ", ".join([*numbers, *([f"in {dtype}"] if dtype else [])])
    return {title: text for title, text in lines.items() if text}


_TITLES = {
    "pretrain": "Pretraining",
    "sft": "Taught to chat (SFT)",
    "rl": "Reinforcement learning",
}
_NUMBERS = (
    ("steps", "{:,} steps"),
    ("tokens", "{:,} tokens"),
    ("total_training_flops", "{:.3g} FLOPs"),
    ("conversations", "{:,} conversations"),
)


def _source_lines(shards: Manifest | None) -> tuple[str, ...]:
    if shards is None:
        return ()
    lines = _source(shards.recipe.get("source", {}))
    sizes = [
        f"{shards.metrics[name]:,} {name}"
        for name in ("documents", "characters")
        if isinstance(shards.metrics.get(name), int)
    ]
    return (*lines, *([f"In all {' of '.join(sizes)}"] if sizes else []))


def _source(source: Mapping[str, Any]) -> list[str]:
    if source.get("kind") == "mixture":
        return [
            f"{part.get('name')}, weight {part.get('weight')}: {line}"
            for part in source.get("parts", ())
            for line in _source(part.get("source", {}))
        ]
    if source.get("kind") == "harvest":
        names = [f"{name} {version}" for name, version in source.get("versions", {}).items()]
        return [
            f"Documentation inside Python {source.get('python')} and installed packages: "
            f"{_first(names)}"
        ]
    files = source.get("files", ())
    if source.get("kind") == "files":
        # Names of one's own files are nobody's business, and digests tell who has the same ones.
        size = sum(file.get("bytes", 0) for file in files)
        return [f"Files of one's own: {len(files):,} of {size:,} bytes"]
    names = [f"{file.get('name')} (sha256 {str(file.get('sha256'))[:12]}…)" for file in files]
    return [f"Files: {_first(names)}"] if names else []


def _first(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")
