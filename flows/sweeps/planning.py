"""What a sweep still has to make: its points, and the beginnings that several of them share."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.dry_line import dry_run
from flows.forecast.forecasting import forecast
from flows.forecast.machine import Machine
from flows.parameters import ResolvedRun, resolve
from flows.presets import MAKING_STATIONS
from flows.sweeps.points import Point
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import NanochatError
from nanochat_core.training.dial import plan_training
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.trunk import Beginning, shared_beginnings, trunk_key

DATA_STATIONS = ("shards", "tokenizer", "tokens")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedPoint:
    """A point, what it asks for, and how long it will take."""

    point: Point
    run: ResolvedRun
    after: tuple[int, ...] = ()
    """Places in the plan of the beginnings that it goes on from."""
    seconds: float | None = None
    """About; 0 where all is in the store, None where nobody can tell."""


@dataclass(frozen=True)
class _Shared:
    """A beginning that is worth making first, and the points that share it."""

    beginning: Beginning
    users: tuple[int, ...]
    key: str
    """Equal for beginnings of which the longer goes on from the shorter."""


def plan_sweep(
    points: Sequence[Point], environ: Mapping[str, str], store: ArtifactStore
) -> list[PlannedPoint]:
    """All there is to make in order: beginnings that points share, then the points.

    A beginning is planned where at least two points that are still to be made share it.
    """
    runs = [resolve(point.parameters, environ) for point in points]
    missing = [i for i, run in enumerate(runs) if _lacks_model(run, store)]
    shared = list(_shared(runs, missing))
    first = [
        PlannedPoint(point, resolve(point.parameters, environ), _chain(shared, place))
        for place, point in enumerate(_beginning_point(each, points, runs) for each in shared)
    ]
    rest = [
        PlannedPoint(point, run, tuple(j for j, each in enumerate(shared) if i in each.users))
        for i, (point, run) in enumerate(zip(points, runs, strict=True))
    ]
    return [*first, *rest]


def num_steps(run: ResolvedRun) -> int:
    """Training steps of a run."""
    recipes = run.preset.recipes
    return plan_training(recipes.pretrain, recipes.tokenizer.vocab_size).num_iterations


def plan_words(plan: Sequence[PlannedPoint]) -> str:
    """`4 points, 1 of them made already; 2 beginnings are shared: 50 of 90 steps are left`."""
    points = [each for each in plan if not each.point.is_beginning]
    num_made = sum(each.seconds == 0 for each in points)
    words = f"{len(points)} point{'s' if len(points) > 1 else ''}"
    words += f", {num_made} of them made already" if num_made else ""
    num_shared = len(plan) - len(points)
    if not num_shared:
        return words
    missing = [each for each in plan if each.seconds != 0]
    all_steps = sum(num_steps(each.run) for each in missing if not each.point.is_beginning)
    own_steps = sum(num_steps(each.run) - steps_before(each, plan) for each in missing)
    return (
        f"{words}; first {num_shared} beginning{'s' if num_shared > 1 else ''} that they share, "
        f"so {own_steps:,} steps are made instead of {all_steps:,}"
    )


def steps_before(planned: PlannedPoint, plan: Sequence[PlannedPoint]) -> int:
    """Steps that a point takes from the longest of its beginnings."""
    return max((num_steps(plan[i].run) for i in planned.after), default=0)


def _lacks_model(run: ResolvedRun, store: ArtifactStore) -> bool:
    planned = dry_run(run, store, verify=False, upstream=store.upstream)
    return planned["pretrain"].state != "cached"


def _shared(runs: Sequence[ResolvedRun], missing: Sequence[int]) -> Iterator[_Shared]:
    # Points that ask for the same model need it once.
    once = {_recipes_until(runs[i], "pretrain"): i for i in reversed(missing)}
    groups: dict[str, list[int]] = {}
    for i in sorted(once.values()):
        if runs[i].preset.executions.pretrain.share_beginnings:
            # Rows are the same for points whose tokens and tokenizer are.
            groups.setdefault(_recipes_until(runs[i], DATA_STATIONS[-1]), []).append(i)
    for rows, places in groups.items():
        asked = [(runs[i].preset.recipes.pretrain, num_steps(runs[i])) for i in places]
        for each in shared_beginnings(asked):
            users = tuple(places[user] for user in each.users)
            yield _Shared(each, users, rows + trunk_key(each.recipe))


def _chain(shared: Sequence[_Shared], place: int) -> tuple[int, ...]:
    """The beginnings before this one that it goes on from."""
    own = shared[place]
    return tuple(
        i
        for i, each in enumerate(shared[:place])
        if each.key == own.key and each.beginning.steps < own.beginning.steps
    )


def _recipes_until(run: ResolvedRun, last: str) -> str:
    """Everything that decides what comes out of a station."""
    names = MAKING_STATIONS[: MAKING_STATIONS.index(last) + 1]
    return run.preset.recipes.model_dump_json(include=set(names))


def _beginning_point(each: _Shared, points: Sequence[Point], runs: Sequence[ResolvedRun]) -> Point:
    """The ordinary run that makes a beginning, from that of its first user."""
    user, run = points[each.users[0]], runs[each.users[0]]
    asked, wanted = run.preset.recipes.pretrain, each.beginning.recipe
    others = len(each.users) - 1
    overrides = {**user.parameters.overrides, **_differing(asked, wanted)}
    # It is no run that somebody would look for at a tracker.
    changes = {"overrides": overrides, "stop_after": "pretrain", "run": "", "tracker": "none"}
    return Point(
        f"first {each.beginning.steps:,} steps of {user.label} and {others} more",
        user.values,
        user.parameters.model_copy(update=changes),
        is_beginning=True,
    )


def _differing(asked: PretrainRecipe, wanted: PretrainRecipe) -> dict[str, Any]:
    """What has to be set so that the one recipe becomes the other, as `--set` names it."""
    before, after = (_leaves("pretrain", each.model_dump()) for each in (asked, wanted))
    return {name: value for name, value in after.items() if before.get(name) != value}


def _leaves(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _leaves(f"{name}.{key}", inner)
    return found


def with_times(
    plan: Sequence[PlannedPoint], store: ArtifactStore, machine: Machine | None = None
) -> list[PlannedPoint]:
    """The same with predicted times; what several points share is counted with the first.

    `machine` is this one, if none is given.
    """
    counted: set[tuple[str, str]] = set()
    return [replace(each, seconds=_seconds(each, plan, store, counted, machine)) for each in plan]


def _seconds(
    planned: PlannedPoint,
    plan: Sequence[PlannedPoint],
    store: ArtifactStore,
    counted: set[tuple[str, str]],
    machine: Machine | None,
) -> float | None:
    try:
        stations = forecast(planned.run, store, machine=machine).stations
    except NanochatError as error:
        log.debug("no forecast of %s: %s", planned.point.label, error)
        return None
    seconds = 0.0
    for each in stations:
        key = (each.station, _recipes_until(planned.run, each.station))
        if each.state == "cached" or key in counted:
            continue
        counted.add(key)
        begun = steps_before(planned, plan) if each.station == "pretrain" else 0
        own = 1 - begun / num_steps(planned.run)
        seconds += each.seconds.mid * own
    return seconds
