"""What finished stages took: read from the newest run records, with what each had to do.

A record of a run says which stations were made and how long that took; the manifest of what a
station made, and those of its inputs, say what there was to do, on which machine.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from flows.forecast.amounts import Amounts
from flows.forecast.machine import Machine, machine_of
from flows.forecast.nominal import TRAINED, Job, Nominal
from flows.forecast.rates import rates
from flows.presets import MAKING_STATIONS, Recipes
from nanochat_core.artifacts.records import Manifests, Runs
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.threads import in_threads
from nanochat_core.artifacts.types import ArtifactRef, Manifest
from nanochat_core.config.base import Recipe
from nanochat_core.config.execution import Execution
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.model.counts import NUMBER_BYTES, Numbers

log = logging.getLogger(__name__)

NEWEST_RUNS = 200
"""Records that are read at most: a store of ten thousand runs must not take longer to plan with."""
PER_STATION = 8
"""Times that are kept of each station; older ones are of older code."""
WARM_STEPS = 10
"""Steps of each process that `total_training_time` leaves out (`nanochat_core.training.loop`)."""
READERS = 16
"""Run records that are asked for at once."""
MAKING = frozenset(MAKING_STATIONS)


@dataclass(frozen=True)
class Timing:
    """How long one station took once, beside what it would have taken by reference."""

    station: str
    seconds: float
    nominal: Nominal
    machine: Machine
    step_seconds: float | None = None
    """One optimizer step, where there were enough of them to tell."""
    shape: str = ""
    """What it compiled code for, '' if it did not."""
    torch: str = ""
    is_bench: bool = False
    steps_ratio: float = 1.0
    """Steps that it really had, by those that its recipe alone had made one expect."""

    @property
    def around_seconds(self) -> float | None:
        """All but the steps; None where the steps are not known."""
        if self.step_seconds is None or self.is_bench:
            return None
        return max(self.seconds - self.nominal.steps * self.step_seconds, 0.0)


@dataclass(frozen=True)
class Timings:
    """All that a store tells about times."""

    made: tuple[Timing, ...] = ()
    """Newest first."""
    cached_seconds: tuple[float, ...] = ()

    def of(self, station: str) -> tuple[Timing, ...]:
        """Those of one station."""
        return tuple(timing for timing in self.made if timing.station == station)


class TimingReader:
    """Reads times from a store; what is damaged, gone, or of other recipes is passed over."""

    def __init__(self, store: ArtifactStore) -> None:
        self._runs, self._manifests = Runs(store.files), Manifests(store.files)
        # Disks answer at once, stores elsewhere after tens of milliseconds.
        self._num_threads = 1 if store.files.local_path("") is not None else READERS
        self._read: dict[tuple[str, str, int], Manifest | None] = {}

    def read(self) -> Timings:
        """Times of the newest runs, until every station has enough of them."""
        made: list[Timing] = []
        cached: list[float] = []
        seen: set[ArtifactRef] = set()
        for stages in self._stages():
            for station, stage in stages.items():
                if stage.get("state") == "cached":
                    cached.append(float(stage.get("seconds", 0.0)))
                    continue
                enough = sum(timing.station == station for timing in made) >= PER_STATION
                timing = None if enough else self._timing(station, stage, seen)
                made += [] if timing is None else [timing]
            if all(sum(t.station == name for t in made) >= PER_STATION for name in TRAINED):
                break
        return Timings(tuple(made), tuple(cached[: PER_STATION * len(MAKING)]))

    def _stages(self) -> Iterator[Mapping[str, Any]]:
        """What each run says of its stations, newest run first; a few are read at a time."""
        names = sorted(self._runs.names(), reverse=True)[:NEWEST_RUNS]
        for first in range(0, len(names), READERS):
            batch = names[first : first + READERS]
            for record in in_threads(self._record, batch, self._num_threads):
                stages = record.get("stations")
                if isinstance(stages, Mapping):
                    yield {key: told for key, told in stages.items() if isinstance(told, Mapping)}

    def _record(self, name: str) -> Mapping[str, Any]:
        try:
            return self._runs.read(name) or {}
        except NanochatError as error:
            log.debug("no times from run %s: %s", name, error)
            return {}

    def _timing(
        self, station: str, stage: Mapping[str, Any], seen: set[ArtifactRef]
    ) -> Timing | None:
        if station not in MAKING or stage.get("state") not in ("made", "resumed"):
            return None
        try:
            ref = ArtifactRef.model_validate(stage.get("ref"))
            if ref in seen:
                return None
            seen.add(ref)
            manifest = self._manifest(ref)
            amounts = None if manifest is None else self._amounts(manifest)
            if manifest is None or amounts is None:
                return None
            return timing_of(manifest, amounts, float(stage["seconds"]))
        except (ValidationError, ConfigError, KeyError, TypeError, ValueError) as error:
            log.debug("no time from a record of %s: %s", station, error)
            return None

    def _manifest(self, ref: ArtifactRef) -> Manifest | None:
        place = ref.station, ref.fingerprint, ref.manifest
        if place not in self._read:
            try:
                self._read[place] = self._manifests.read(*place)
            except NanochatError as error:
                log.debug("%s is not used for times: %s", ref.short, error)
                self._read[place] = None
        return self._read[place]

    def _amounts(self, manifest: Manifest) -> Amounts | None:
        """What the artifact was made from, back to the text; None where a link is missing."""
        recipes: dict[str, Recipe] = {}
        metrics: dict[str, Mapping[str, Any]] = {}
        waiting = [manifest]
        while waiting:
            found = waiting.pop()
            if found.station in recipes or found.station not in MAKING:
                continue
            recipes[found.station] = _recipe(found)
            metrics[found.station] = found.metrics
            inputs = [self._manifest(ref) for ref in found.input_refs.values()]
            if None in inputs:
                return None
            waiting += [each for each in inputs if each is not None]
        return Amounts(recipes, metrics)


def timing_of(manifest: Manifest, amounts: Amounts, seconds: float) -> Timing | None:
    """What a finished stage says about speed; None where its manifest does not tell where it ran.

    Of a resumed training only the steps since its checkpoint count.
    """
    told, station = manifest.provenance, manifest.station
    machine = machine_of(told)
    if machine is None or not math.isfinite(seconds) or seconds <= 0:
        return None
    if told.get("known_scores"):
        # Some of its answers were taken from the store.
        return None
    execution = Execution.model_validate(told.get("execution", {}))
    if isinstance(rows := told.get("device_batch_size"), int):
        execution = execution.model_copy(update={"device_batch_size": rows})
    numbers = _numbers(told)
    job = Job(
        station,
        amounts,
        execution,
        numbers,
        machine.device_type,
        rates(machine, execution, numbers),
    )
    nominal = job.nominal()
    resumed_from = int(told.get("resumed_from_step", 0))
    is_compiled = station in TRAINED and execution.compile
    return Timing(
        station,
        seconds,
        nominal.with_steps(nominal.steps - resumed_from),
        machine,
        step_seconds=_step_seconds(manifest, resumed_from),
        shape=job.shape if is_compiled else "",
        torch=str(told.get("torch", "")),
        steps_ratio=_steps_ratio(station, amounts),
    )


def _step_seconds(manifest: Manifest, resumed_from: int) -> float | None:
    trained = manifest.metrics.get("total_training_time")
    steps = manifest.metrics.get("steps")
    if not isinstance(trained, int | float) or not isinstance(steps, int | float) or trained <= 0:
        return None
    # Every process leaves its first steps out; of those before the last we know of one.
    left_out = WARM_STEPS * (2 if resumed_from else 1)
    return float(trained / (steps - left_out)) if steps > left_out else None


def _steps_ratio(station: str, amounts: Amounts) -> float:
    others = {name: told for name, told in amounts.metrics.items() if name != station}
    expected = replace(amounts, metrics=others).steps(station)
    return amounts.steps(station) / expected if expected else 1.0


def _recipe(manifest: Manifest) -> Recipe:
    kind = Recipes.model_fields[manifest.station].annotation
    assert kind is not None, "every recipe has a class"
    recipe: Recipe = kind.model_validate(manifest.recipe)
    return recipe


def _numbers(provenance: Mapping[str, Any]) -> Numbers:
    told = provenance.get("compute_dtype")
    return next((numbers for numbers in NUMBER_BYTES if numbers == told), "float32")
