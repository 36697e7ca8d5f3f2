"""One row for each point of a sweep: what was varied, what it made, what it cost."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_core.artifacts.types import Manifest
from nanochat_core.errors import ConfigError
from nanochat_core.report.begun import first_step
from nanochat_core.report.material import CHAT_EVALS, CONFIG_FILE, Material
from nanochat_core.report.numbers import is_number
from nanochat_core.report.scores import Score
from nanochat_core.report.sweeps.recipe import POINT_STATIONS, SweepRecipe, Value, input_name

BPB = "val/bpb"
BASE_SCORES = ("core_metric", "demo_score")
CHAT_SCORES = ("chatcore_metric", "demo_score")
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class PointRow:
    """A point of a sweep in numbers; None stands for what was not measured."""

    label: str
    values: Mapping[str, Value]
    depth: int
    parameters: int
    scaling_parameters: int
    tokens: int
    steps: int
    first_step: int
    """Steps before this one are another run's: a shared beginning."""
    flops: float
    bpb: float | None
    score_name: str
    score: float | None
    score_stderr: float | None
    chat_score_name: str
    chat_score: float | None
    chat_score_stderr: float | None
    seconds: float
    money: float
    refs: Mapping[str, str]
    """Short reference of the artifact of each station."""

    @property
    def tokens_per_parameter(self) -> float:
        """D/N, the ratio that the scaling laws are about."""
        return self.tokens / self.scaling_parameters


def point_material(
    manifests: Mapping[str, Manifest], folders: Mapping[str, Path], index: int
) -> Material:
    """What there is of one point, by station; folders are asked for when files are read."""
    names = {station: input_name(index, station) for station in POINT_STATIONS}
    present = {station: name for station, name in names.items() if name in manifests}
    return Material(
        {station: manifests[name] for station, name in present.items()},
        _Renamed(folders, present),
    )


def read_rows(
    manifests: Mapping[str, Manifest], folders: Mapping[str, Path], recipe: SweepRecipe
) -> list[PointRow]:
    """A row for each point of the recipe, in its order."""
    return [
        _row(point_material(manifests, folders, index), recipe, index)
        for index in range(len(recipe.points))
    ]


def _row(material: Material, recipe: SweepRecipe, index: int) -> PointRow:
    point = recipe.points[index]
    if "pretrain" not in material.manifests:
        raise ConfigError(
            f"the sweep has no input {input_name(index, 'pretrain')} for its point {point.label}; "
            "give the pretrained model of every point, or list the point as failed"
        )
    manifest = material.manifests["pretrain"]
    metrics, plan = manifest.metrics, material.json("pretrain", CONFIG_FILE)["plan"]
    base = _finite(material.base_scores())
    score_name, score = _first(BASE_SCORES, base)
    chat_name, chat = _last_chat_score(material)
    seconds = sum(made_in(each) for each in material.manifests.values())
    return PointRow(
        label=point.label,
        values=point.values,
        depth=int(manifest.recipe["depth"]),
        parameters=int(metrics["parameters"]),
        scaling_parameters=int(plan["scaling_parameters"]),
        tokens=int(metrics["tokens"]),
        steps=int(metrics["steps"]),
        first_step=first_step(manifest),
        flops=float(metrics["total_training_flops"]),
        bpb=base[BPB].value if BPB in base else None,
        score_name=score_name,
        score=score.value if score else None,
        score_stderr=score.stderr if score else None,
        chat_score_name=chat_name,
        chat_score=chat.value if chat else None,
        chat_score_stderr=chat.stderr if chat else None,
        seconds=seconds,
        money=seconds / SECONDS_PER_HOUR * recipe.price_per_hour,
        refs={station: material.manifests[station].ref.short for station in material.stations},
    )


def made_in(manifest: Manifest) -> float:
    """Seconds that this artifact took to make, without steps that it has from another one.

    The time of a station that was interrupted is known of its last part only; of a training,
    then, that of its steps is known, as every checkpoint carries it on.
    """
    said = manifest.provenance.get("seconds")
    seconds = float(said) if is_number(said) else 0.0
    stepping, steps = (manifest.metrics.get(name) for name in ("total_training_time", "steps"))
    if not manifest.provenance.get("resumed") or not is_number(stepping) or not is_number(steps):
        return seconds
    # The time of a beginning is part of its branch's: steps of one length are assumed.
    return max(seconds, stepping * (1 - first_step(manifest) / max(steps, 1)))


def _finite(scores: Mapping[str, Score]) -> dict[str, Score]:
    """Without those of a model that came to nothing: NaN is no result, and has no place."""
    return {name: score for name, score in scores.items() if math.isfinite(score.value)}


def _first(names: tuple[str, ...], scores: Mapping[str, Score]) -> tuple[str, Score | None]:
    name = next((name for name in names if name in scores), "")
    return name, scores.get(name)


def _last_chat_score(material: Material) -> tuple[str, Score | None]:
    """Of the model after RL where there is one, else after SFT."""
    for station in reversed(CHAT_EVALS):
        name, score = _first(CHAT_SCORES, _finite(material.chat_scores(station)))
        if score is not None:
            return name, score
    return "", None


class _Renamed(Mapping[str, Path]):
    """Folders by station, taken from folders by input when they are asked for."""

    def __init__(self, folders: Mapping[str, Path], names: Mapping[str, Any]) -> None:
        self._folders, self._names = folders, names

    def __getitem__(self, station: str) -> Path:
        return self._folders[self._names[station]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
