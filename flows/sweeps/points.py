"""The points of a sweep: each is an ordinary run, known to be possible before any is made."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from flows.parameters import (
    NO_RUN,
    ResolvedRun,
    RunParameters,
    check,
    parse_parameters,
)
from flows.presets import STATIONS
from flows.sweeps.parameters import BUDGET, DEPTH, STEPS, AnySweep
from flows.sweeps.values import Value, spelled
from nanochat_core.data.recipes import HubSource, MixtureSource
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.training.dial import plan_training
from nanochat_core.training.trunk import sharing_hint

LAST, LAST_OF_CHAT = "base_eval", "chat_eval_rl"
"""Stations that end a point: neither a report of its own nor a release, which moves names."""
RATIO = "pretrain.target_param_data_ratio"
SHARDS = "shards.num_shards"
HORIZONS = (STEPS, BUDGET, RATIO)
MAX_POINTS = 1_000
"""More are a slip of the fingers."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep: what `nanochat run` would make with these parameters."""

    label: str
    values: Mapping[str, Value]
    parameters: RunParameters
    is_beginning: bool = field(default=False, kw_only=True)
    """Made only because other points start from it."""


def expand(asked: AnySweep) -> list[Point]:
    """All combinations of what is varied; ConfigError names a value that cannot be meant."""
    axes, common = asked.axes, asked.run_values()
    if (count := _count(axes)) > MAX_POINTS:
        raise ConfigError(f"these are {count:,} points; give fewer values ({MAX_POINTS:,} at most)")
    points = [
        _point(asked, common, dict(zip(axes, values, strict=True)))
        for values in product(*axes.values())
    ]
    for label, times in Counter(point.label for point in points).items():
        if times > 1:
            raise ConfigError(f"the point {label} is asked for {times} times; give a value once")
    return points


def _count(axes: Mapping[str, Sequence[Value]]) -> int:
    count = 1
    for values in axes.values():
        count *= len(values)
    return count


def _point(asked: AnySweep, common: Mapping[str, Any], values: dict[str, Value]) -> Point:
    label = ",".join(f"{name}={spelled(value)}" for name, value in values.items())
    own: dict[str, Any] = {}
    if DEPTH in values:
        own["depth"] = values[DEPTH]
    if asked.run != NO_RUN and (asked.run or asked.tracker != "none"):
        own["run"] = f"{asked.run or asked.preset}-{label}"
    numbers = {name: value for name, value in values.items() if name != DEPTH}
    parameters = parse_parameters(
        {
            **common,
            **own,
            "overrides": {**common["overrides"], **numbers},
            "stop_after": LAST_OF_CHAT if asked.chat else LAST,
        }
    )
    return Point(label, values, parameters)


def check_points(points: Sequence[Point], environ: Mapping[str, str]) -> list[ResolvedRun]:
    """Every point, known to be possible as far as that can be known; one error names the first.

    As `flows.parameters.check` of a run: their recipes are no one's.
    """
    return [_checked(point, environ) for point in points]


def _checked(point: Point, environ: Mapping[str, str]) -> ResolvedRun:
    try:
        return check(point.parameters, environ)
    except NanochatError as error:
        raise type(error)(f"point {point.label}: {error}") from error


def notes(points: Sequence[Point], runs: Sequence[ResolvedRun]) -> list[str]:
    """What may well be meant, but should be said; each once."""
    said = [warning for run in runs for warning in run.warnings]
    for notes_on in (_notes_on_equal, _notes_on_length, _notes_on_shards):
        said += notes_on(points, runs)
    return list(dict.fromkeys(said))


def _notes_on_equal(points: Sequence[Point], runs: Sequence[ResolvedRun]) -> list[str]:
    """Points that compute the same, as where only an execution differs."""
    varied = {name for point in points for name in point.values}
    later = STATIONS[STATIONS.index(LAST) + 1 :]
    if runs[0].stations[-1] == LAST and all(_station(name) in later for name in varied):
        return [
            f"points end after {LAST}, so nothing that is varied makes a difference "
            f"({', '.join(sorted(varied))}); give --chat to fine-tune each model, too"
        ]
    first: dict[str, str] = {}
    found = []
    for point, run in zip(points, runs, strict=True):
        entered = run.preset.recipes.model_dump_json(include=set(run.stations))
        other = first.setdefault(entered, point.label)
        if other != point.label:
            found.append(
                f"{point.label} computes the same as {other}, so it is made once: only recipes "
                "make a difference, not where and how they run"
            )
    return found


def _station(field: str) -> str:
    return field.partition(".")[0]


def _notes_on_length(points: Sequence[Point], runs: Sequence[ResolvedRun]) -> list[str]:
    """How runs of several lengths could share steps, where they do not."""
    varied = {name for point in points for name in point.values}
    if not varied & {*HORIZONS}:
        return []
    recipes = [run.preset.recipes for run in runs]
    lengths: dict[int, set[int]] = {}
    for each in recipes:
        plan = plan_training(each.pretrain, each.tokenizer.vocab_size)
        lengths.setdefault(each.pretrain.depth, set()).add(plan.num_iterations)
    if all(len(found) < 2 for found in lengths.values()):
        return []
    return [hint for hint in map(sharing_hint, (each.pretrain for each in recipes)) if hint][:1]


def _notes_on_shards(points: Sequence[Point], runs: Sequence[ResolvedRun]) -> list[str]:
    """How all points could read the same published shards, where a run takes what it needs."""
    recipes = [run.preset.recipes.shards for run in runs]
    counts = sorted({each.num_shards for each in recipes if isinstance(each.source, HubSource)})
    found = []
    if len(counts) > 1 and not any(SHARDS in point.parameters.overrides for point in points):
        found.append(
            f"points read {' or '.join(map(str, counts))} shards, so tokens are made for each "
            f"number, and no first steps are shared; --set {SHARDS}={counts[-1]} lets all read "
            "the same"
        )
    parts: dict[str, set[int]] = {}
    for name, number in (each for recipe in recipes for each in _published_parts(recipe.source)):
        parts.setdefault(name, set()).add(number)
    return found + [
        f"points read {' or '.join(map(str, sorted(numbers)))} shards of {name}, which has a share "
        "of the text; tokens are made for each number, and no first steps are shared between them"
        for name, numbers in parts.items()
        if len(numbers) > 1
    ]


def _published_parts(source: Any) -> Iterator[tuple[str, int]]:
    """Names of the published sets in a mixture, and how many train shards of each are read."""
    for part in source.parts if isinstance(source, MixtureSource) else ():
        if isinstance(part.source, HubSource):
            yield part.name, len(part.source.files) - 1
