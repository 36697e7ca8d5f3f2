"""What a sweep still has to make: its points, and the beginnings that several of them share."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.dry_line import dry_run
from flows.forecast.estimating import Estimator
from flows.forecast.forecasting import estimator_for, forecast
from flows.forecast.machine import Machine
from flows.forecast.types import StationForecast
from flows.parameters import ResolvedRun, resolve
from flows.presets import MAKING_STATIONS
from flows.sweeps.points import SHARDS, Point
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.data.recipes import HubSource
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
    """About; 0 where all is in the store or made for an earlier point, None if nobody can tell."""
    lacks_model: bool = True
    """Whether its model is still to be made."""


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
    lacking = [_lacks_model(run, store) for run in runs]
    found = _shared(runs, [i for i, lacks in enumerate(lacking) if lacks])
    first = [(each, *_beginning(each, points, runs, environ)) for each in found]
    # A run of fewer steps may read other text, as of a mixture with published shards.
    first = [(each, point, run) for each, point, run in first if _is_of(runs, each, run)]
    shared = [each for each, _, _ in first]
    beginnings = [
        PlannedPoint(point, run, _chain(shared, place), lacks_model=_lacks_model(run, store))
        for place, (_, point, run) in enumerate(first)
    ]
    rest = [
        PlannedPoint(
            point,
            runs[i],
            tuple(j for j, each in enumerate(shared) if i in each.users),
            lacks_model=lacking[i],
        )
        for i, point in enumerate(points)
    ]
    return [*beginnings, *rest]


def num_steps(run: ResolvedRun) -> int:
    """Training steps of a run."""
    recipes = run.preset.recipes
    return plan_training(recipes.pretrain, recipes.tokenizer.vocab_size).num_iterations


def plan_words(plan: Sequence[PlannedPoint]) -> str:
    """`4 points, 1 of them made already; 2 beginnings are shared: 50 of 90 steps are left`."""
    points = [each for each in plan if not each.point.is_beginning]
    num_made = sum(not each.lacks_model for each in points)
    words = f"{len(points)} point{'s' if len(points) > 1 else ''}"
    words += f", {num_made} of them made already" if num_made else ""
    num_shared = len(plan) - len(points)
    if not num_shared:
        return words
    all_steps = sum(num_steps(each.run) for each in _trained(points))
    own_steps = sum(num_steps(each.run) - steps_before(each, plan) for each in _trained(plan))
    return (
        f"{words}; first {num_shared} beginning{'s' if num_shared > 1 else ''} that they share, "
        f"so {own_steps:,} steps are made instead of {all_steps:,}"
    )


def _trained(planned: Sequence[PlannedPoint]) -> Iterable[PlannedPoint]:
    """Those that train: of several that ask for the same model the first."""
    missing = [each for each in reversed(planned) if each.lacks_model]
    return {_recipes_until(each.run, "pretrain"): each for each in missing}.values()


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


def _beginning(
    each: _Shared, points: Sequence[Point], runs: Sequence[ResolvedRun], environ: Mapping[str, str]
) -> tuple[Point, ResolvedRun]:
    """The ordinary run that makes a beginning, from that of its first user."""
    user, recipes = points[each.users[0]], runs[each.users[0]].preset.recipes
    others = len(each.users) - 1
    overrides = {
        **user.parameters.overrides,
        **_differing(recipes.pretrain, each.beginning.recipe),
    }
    if isinstance(recipes.shards.source, HubSource):
        # By itself it would take as many as it needs, which are fewer.
        overrides[SHARDS] = recipes.shards.num_shards
    # It is no run that somebody would look for at a tracker.
    changes = {"overrides": overrides, "stop_after": "pretrain", "run": "", "tracker": "none"}
    point = Point(
        f"first {each.beginning.steps:,} steps of {user.label} and {others} more",
        user.values,
        user.parameters.model_copy(update=changes),
        is_beginning=True,
    )
    return point, resolve(point.parameters, environ)


def _is_of(runs: Sequence[ResolvedRun], each: _Shared, run: ResolvedRun) -> bool:
    """Whether a run makes a beginning that its users can go on from."""
    user, last = runs[each.users[0]], DATA_STATIONS[-1]
    return _recipes_until(run, last) == _recipes_until(user, last)


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
    # All records of the store are behind an estimator: one does for all that run on one device.
    estimators: dict[str, Estimator] = {}
    timed = []
    for each in plan:
        device = each.run.preset.executions.pretrain.device
        try:
            if device not in estimators:
                estimators[device] = estimator_for(each.run, store, machine=machine)
            stations = forecast(each.run, store, estimator=estimators[device]).stations
        except NanochatError as error:
            log.debug("no forecast of %s: %s", each.point.label, error)
            timed.append(each)
            continue
        timed.append(replace(each, seconds=_seconds(each, plan, stations, counted)))
    return timed


def _seconds(
    planned: PlannedPoint,
    plan: Sequence[PlannedPoint],
    stations: Sequence[StationForecast],
    counted: set[tuple[str, str]],
) -> float:
    """Of those stations that no earlier point makes; they are counted from here on."""
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
