"""Points of a sweep: small artifacts written by hand and published by a real store."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from report_tools import lines

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Manifest, Request
from nanochat_core.config.job import Role, StageOutput
from nanochat_core.optim.recipe import ScheduleRecipe
from nanochat_core.report.sweeps.recipe import (
    SweepKind,
    SweepPoint,
    SweepRecipe,
    Value,
    input_name,
)
from nanochat_core.training.recipes import PretrainRecipe

STEPS = "pretrain.num_iterations"
FLOPS_PER_PARAMETER, TOKENS_PER_STEP = 6, 512
CURVE = {10: 2.9, 20: 2.5, 30: 2.3}


@dataclass(frozen=True)
class Point:
    """What was varied in a point and how it went."""

    values: Mapping[str, Value]
    bpb: float
    depth: int = 2
    steps: int = 30
    score: float = 0.25
    seconds: float = 60.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    chat: float | None = None
    model: str = ""
    """Points of one name have one pretrained model; each has its own without a name."""
    shards: str = "0" * 64

    @property
    def label(self) -> str:
        """As a sweep names it."""
        return ",".join(f"{name}={value}" for name, value in self.values.items())


@dataclass(frozen=True)
class Published:
    """A sweep's inputs."""

    recipe: SweepRecipe
    refs: dict[str, ArtifactRef]
    manifests: dict[str, Manifest]
    folders: dict[str, Path]


def publish_points(
    folder: Path, points: Sequence[Point], kind: SweepKind = "sweep", **more: Any
) -> Published:
    """Publish the artifacts of these points into a store below `folder`."""
    store = ArtifactStore(str(folder / "store"))
    refs: dict[str, ArtifactRef] = {}
    for index, point in enumerate(points):
        model = _pretrain(store, folder, point)
        refs[input_name(index, "pretrain")] = model
        refs[input_name(index, "base_eval")] = _base_eval(store, folder, point, model)
        if point.chat is not None:
            refs[input_name(index, "chat_eval_sft")] = _chat_eval(store, folder, point)
    told = tuple(SweepPoint(label=p.label, values=dict(p.values)) for p in points)
    return Published(
        SweepRecipe(kind=kind, points=told, **more),
        refs,
        {name: store.manifest(ref) for name, ref in refs.items()},
        {name: store.materialize(ref) for name, ref in refs.items()},
    )


def scaling_parameters(depth: int) -> int:
    """Of these models, which nobody built."""
    return 10_000 * depth**3


def isoflop_points() -> list[Point]:
    """Three budgets of four depths on a surface as of Hoffmann et al. 2022, with some noise."""
    points = []
    for i, budget in enumerate((1e12, 3e12, 1e13)):
        for depth in (1, 2, 3, 4):
            size = scaling_parameters(depth)
            steps = round(budget / (FLOPS_PER_PARAMETER * size * TOKENS_PER_STEP))
            bpb = 0.5 + 60 / size**0.34 + 40 / (TOKENS_PER_STEP * steps) ** 0.28
            bpb *= 1 + 0.002 * (-1) ** (i + depth)
            values = {"pretrain.target_flops": budget, "depth": depth}
            points.append(Point(values, bpb, depth=depth, steps=steps))
    return points


def _pretrain(store: ArtifactStore, folder: Path, point: Point) -> ArtifactRef:
    number, tokens = scaling_parameters(point.depth), TOKENS_PER_STEP * point.steps
    curve = {step: value + point.bpb - CURVE[30] for step, value in CURVE.items()}
    curve = {step * point.steps // 30: value for step, value in curve.items()}
    files = {
        "config.json": json.dumps(
            {"plan": {"scaling_parameters": number}, "model": point.model or point.label}
        ),
        "metrics.jsonl": lines(train_loss={1: 6.0, point.steps: 4.0}, val_bpb=curve),
    }
    metrics = {
        "parameters": 2 * number,
        "steps": point.steps,
        "tokens": tokens,
        "total_training_flops": float(FLOPS_PER_PARAMETER * number * tokens),
        "total_training_time": point.seconds * 0.8,
        **point.metrics,
    }
    # Points that differ in their length alone are of one kind, and may share steps.
    own = {name: value for name, value in point.values.items() if name != STEPS}
    recipe = PretrainRecipe(
        depth=point.depth,
        num_iterations=point.steps,
        seed=crc32((point.model or str(own)).encode()),
        schedule=ScheduleRecipe(cosine_weight_decay=False, warmdown_fraction=0.2),
    )
    asked = recipe.model_dump(mode="json")
    return _publish(store, folder, "pretrain", asked, files, metrics, {}, point)


def _base_eval(store: ArtifactStore, folder: Path, point: Point, model: ArtifactRef) -> ArtifactRef:
    scores = {"val/bpb": point.bpb, "demo_score": point.score, "demo_score/stderr": 0.02}
    files = {"scores.json": json.dumps(scores)}
    asked = {"validation_tokens": 4096}
    return _publish(store, folder, "base_eval", asked, files, scores, {"pretrain": model}, point)


def _chat_eval(store: ArtifactStore, folder: Path, point: Point) -> ArtifactRef:
    scores = {"sums": 0.5, "demo_score": point.chat, "demo_score/stderr": 0.03}
    files = {"scores.json": json.dumps(scores)}
    return _publish(
        store, folder, "chat_eval_sft", {"point": point.label}, files, scores, {}, point
    )


def _publish(
    store: ArtifactStore,
    folder: Path,
    station: str,
    asked: dict[str, Any],
    files: Mapping[str, str],
    metrics: Mapping[str, Any],
    inputs: dict[str, ArtifactRef],
    point: Point,
) -> ArtifactRef:
    shards = {"shards": point.shards} if station == "base_eval" else {}
    digests = {name: ref.digest for name, ref in inputs.items()}
    request = Request(station=station, code_version=1, recipe=asked, inputs=digests | shards)
    if (made := store.lookup(request)) is not None:
        return made
    work = folder / "work" / request.fingerprint[:16]
    work.mkdir(parents=True)
    roles: dict[str, Role] = {}
    for name, text in files.items():
        (work / name).write_text(text, encoding="utf-8")
        roles[name] = "record" if name == "metrics.jsonl" else "result"
    return store.publish(
        request,
        work,
        StageOutput(files=roles, metrics=dict(metrics)),
        input_refs=inputs,
        provenance={"seconds": point.seconds, "resumed": False, **point.provenance},
    )
