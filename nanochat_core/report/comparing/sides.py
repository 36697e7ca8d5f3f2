"""What is compared: base models, each with the repeats of its recipe that differ in seeds only."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nanochat_core.config.base import Config
from nanochat_core.errors import UnknownNameError
from nanochat_core.report.numbers import is_number

Axis = Literal["steps", "flops", "seconds"]
AXES: tuple[Axis, ...] = ("steps", "flops", "seconds")


class Metric(Config):
    """What models are compared by; `key` is its name among the numbers of training and scoring."""

    name: str
    key: str
    title: str
    is_less_better: bool = False

    def gain(self, first: float, other: float) -> float:
        """How much better `other` is; negative where it is worse."""
        return first - other if self.is_less_better else other - first


METRICS = (
    Metric(name="bpb", key="val/bpb", title="bits per byte", is_less_better=True),
    Metric(name="core", key="core_metric", title="CORE"),
    Metric(name="demo", key="demo_score", title="demo score"),
)


def metric_of(name: str) -> Metric:
    """A metric by the name that people type."""
    found = next((metric for metric in METRICS if name in (metric.name, metric.key)), None)
    if found is None:
        known = ", ".join(metric.name for metric in METRICS)
        raise UnknownNameError(f"no metric {name!r}; there are: {known}")
    return found


@dataclass(frozen=True)
class Curve:
    """One metric over one training: what had been spent when it was measured, and its value."""

    steps: tuple[float, ...] = ()
    flops: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.values)

    def along(self, axis: Axis) -> tuple[float, ...]:
        """Steps, FLOPs or seconds of every value, rising."""
        return {"steps": self.steps, "flops": self.flops, "seconds": self.seconds}[axis]

    def at(self, axis: Axis, place: float) -> float | None:
        """The value there, on a straight line between its neighbours; None outside the curve."""
        places = self.along(axis)
        if not places or not places[0] <= place <= places[-1]:
            return None
        after = next(i for i, each in enumerate(places) if each >= place)
        if places[after] == place:
            return self.values[after]
        share = (place - places[after - 1]) / (places[after] - places[after - 1])
        return self.values[after - 1] + share * (self.values[after] - self.values[after - 1])


@dataclass(frozen=True)
class Repeat:
    """One training of a recipe under one choice of seeds."""

    artifact: str
    digest: str
    seeds: Mapping[str, int]
    final: float | None
    """None: it was not measured as the others were."""
    measured_by: str
    """The artifact that has the number; that of the model where it is from its training."""
    steps: int
    tokens: int
    parameters: int
    flops: float
    seconds: float
    curve: Curve = Curve()


@dataclass(frozen=True)
class Side:
    """One of those that are compared; the first repeat is the one that was named."""

    letter: str
    name: str
    repeats: tuple[Repeat, ...]
    differences: tuple[str, ...] = ()
    """From the first side."""
    repeat_command: str = ""
    """Makes more repeats."""

    @property
    def finals(self) -> list[float]:
        """The numbers that are compared."""
        return [repeat.final for repeat in self.repeats if repeat.final is not None]

    @property
    def label(self) -> str:
        """`A: NAME`."""
        return f"{self.letter}: {self.name}"

    def values_at(self, axis: Axis, place: float) -> list[float]:
        """The values of all repeats there; empty unless all of them have one."""
        found = [repeat.curve.at(axis, place) for repeat in self.repeats if repeat.curve]
        known = [value for value in found if value is not None]
        return known if len(known) == len(found) else []


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison says, before any of it is worked out."""

    metric: Metric
    measured: str
    """How the numbers came about, in words."""
    sides: tuple[Side, ...]
    notes: tuple[str, ...] = field(default=())


def read_curve(text: str, key: str) -> Curve:
    """The curve of a metric in the text of a metrics.jsonl; empty where it was not measured.

    Evaluations have a step alone. What was spent until then is in the lines of training around
    them: FLOPs are proportional to steps, seconds lie on a line between the two neighbours.
    """
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    values = dict(_numbers(lines, key))
    seconds = {0.0: 0.0, **dict(_numbers(lines, "total_training_time"))}
    flops = {step: found for step, found in _numbers(lines, "total_training_flops") if step}
    if not values or not flops:
        return Curve()
    per_step = max(flops.values()) / max(flops)
    clock = Curve(steps=tuple(sorted(seconds)), values=tuple(seconds[s] for s in sorted(seconds)))
    # Beyond the last line of training no time is known.
    steps = [step for step in sorted(values) if step <= clock.steps[-1]]
    return Curve(
        steps=tuple(steps),
        flops=tuple(per_step * step for step in steps),
        seconds=tuple(clock.at("steps", step) or 0.0 for step in steps),
        values=tuple(values[step] for step in steps),
    )


def _numbers(lines: Iterable[Mapping[str, Any]], key: str) -> Iterable[tuple[float, float]]:
    """(step, value) of the lines that have one, in their order: the last of a step counts."""
    for line in lines:
        value = line.get(key)
        if is_number(value) and math.isfinite(value) and is_number(line.get("step")):
            yield float(line["step"]), float(value)
