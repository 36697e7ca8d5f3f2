"""A run before it is paid for: each station's time, money, memory and bytes, and the totals.

Nothing is written and no file of an artifact is read: manifests and run records tell it all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flows.dry_line import Planned, dry_run
from flows.forecast.amounts import Amounts
from flows.forecast.compiled import how_compiled
from flows.forecast.estimating import Estimate, Estimator
from flows.forecast.files import published_bytes, work_bytes
from flows.forecast.machine import Machine, busy_here, computes_bfloat16, machine_here, matmul_flops
from flows.forecast.memory import JOBS, peak_bytes
from flows.forecast.nominal import TRAINED, Job
from flows.forecast.rates import REFERENCE_MATMUL_FLOPS, rates
from flows.forecast.timings import Timing, TimingReader, Timings
from flows.forecast.types import (
    SECONDS_PER_HOUR,
    Forecast,
    Range,
    State,
    StationForecast,
    total,
)
from flows.parameters import ResolvedRun
from flows.presets import MAKING_STATIONS
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Manifest
from nanochat_core.config.execution import Execution
from nanochat_core.data.recipes import FileDigest
from nanochat_core.errors import NanochatError
from nanochat_core.model.counts import NUMBER_BYTES, Numbers
from tasks.release import STATION as RELEASE
from tasks.shards import shard_request

RELEASE_SECONDS = Range(low=0.01, mid=0.05, high=0.5)
DOWNLOAD_BYTES_PER_SECOND = 30e6
"""Of an object store or a web server, about: 240 Mbit/s."""


def forecast(
    resolved: ResolvedRun,
    store: ArtifactStore,
    *,
    price_per_hour: float | None = None,
    machine: Machine | None = None,
    bench: Timing | None = None,
    estimator: Estimator | None = None,
) -> Forecast:
    """What a run will take on `machine` (this one, if none is given); see `Forecast`.

    `bench` is a measurement of training steps there (`flows.forecast.benched`). An `estimator` of
    that machine (`estimator_for`) may be given where several runs are forecast.
    """
    estimator = estimator or estimator_for(resolved, store, machine=machine, bench=bench)
    look = _Look(resolved, store, estimator)
    stations = tuple(look.station(name) for name in look.planned)
    around = estimator.around_the_run()
    seconds = total([around, *(station.seconds for station in stations)])
    work = max((station.work_bytes for station in stations), default=0)
    found = Forecast(
        preset=resolved.preset_name,
        machine=estimator.machine.words,
        busy=busy_here() if machine is None else 0.0,
        pools={
            each.station: resolved.pools[each.station]
            for each in stations
            if each.station in resolved.pools and each.state != "cached"
        },
        stations=stations,
        overhead_seconds=around,
        seconds=seconds,
        memory_bytes=max((station.memory_bytes for station in stations), default=0),
        download_bytes=sum(station.download_bytes for station in stations),
        disk_bytes=work + sum(station.disk_bytes for station in stations),
    )
    return found if price_per_hour is None else _priced(found, price_per_hour)


def estimator_for(
    resolved: ResolvedRun,
    store: ArtifactStore,
    *,
    machine: Machine | None = None,
    bench: Timing | None = None,
) -> Estimator:
    """Times on `machine` (this one, if none is given), by all that the store remembers."""
    here = machine or machine_here(resolved.preset.executions.pretrain)
    timings = TimingReader(store).read()
    if bench is not None:
        timings = Timings((bench, *timings.made), timings.cached_seconds)
    return _estimator(here, timings, is_here=machine is None)


def _estimator(machine: Machine, timings: Timings, *, is_here: bool) -> Estimator:
    """With records of this machine nothing need be measured; without, a matrix product is."""
    records = [timing for timing in timings.made if not timing.is_bench]
    is_known = any(t.machine.is_like(machine, uses_device=False) for t in records)
    if is_known or not is_here:
        return Estimator(machine, timings)
    flops = matmul_flops()
    if flops is None:
        return Estimator(machine, timings)
    return Estimator(machine, timings, REFERENCE_MATMUL_FLOPS / flops, is_scaled=True)


def _priced(found: Forecast, price_per_hour: float) -> Forecast:
    """The same with money: machines cost by the hour whether they compute or not."""
    each = price_per_hour / SECONDS_PER_HOUR
    stations = [
        station.model_copy(update={"money": station.seconds.times(each)})
        for station in found.stations
    ]
    return found.model_copy(
        update={
            "price_per_hour": price_per_hour,
            "stations": tuple(stations),
            "money": found.seconds.times(each),
        }
    )


@dataclass
class _Look:
    """One run looked at: what is planned, what is known, and how stations were compiled."""

    resolved: ResolvedRun
    store: ArtifactStore
    estimator: Estimator
    _compiled: set[str] = field(default_factory=set)
    """Shapes that a station before will have compiled code for."""
    _fetched: set[str] = field(default_factory=set)
    """Inputs that a station before will have fetched to this machine."""

    @cached_property
    def planned(self) -> dict[str, Planned]:
        """Station -> what is there, in the order of the line."""
        return dry_run(self.resolved, self.store, verify=False, upstream=self.store.upstream)

    @cached_property
    def unforced(self) -> dict[str, Planned]:
        """The same if nothing were forced: what a forced station that comes out equal leaves."""
        if not self.resolved.forced:
            return self.planned
        plain = self.resolved.model_copy(update={"forced": ()})
        return dry_run(plain, self.store, verify=False, upstream=self.store.upstream)

    @cached_property
    def amounts(self) -> Amounts:
        """What there is to do, with the numbers of all that is in the store."""
        recipes = self.resolved.preset.recipes
        manifests = {name: self._manifest(planned) for name, planned in self.unforced.items()}
        return Amounts(
            {name: getattr(recipes, name) for name in MAKING_STATIONS},
            {name: found.metrics for name, found in manifests.items() if found is not None},
        )

    def station(self, name: str) -> StationForecast:
        """One row."""
        planned, state = self.planned[name], self.state(name)
        if name == RELEASE:
            return StationForecast(station=name, state=state, seconds=RELEASE_SECONDS)
        if state == "cached":
            return self._cached(planned)
        job = self.job(name)
        estimate = self._estimate(job, planned.in_progress_step or 0)
        seconds = estimate.seconds
        download = self._download_bytes(planned)
        if download:
            seconds = total([seconds, Range.around(download / DOWNLOAD_BYTES_PER_SECOND, 3.0)])
        if state == "depends":
            quick = self.estimator.cached()
            seconds = Range(low=quick.low, mid=quick.mid, high=seconds.high)
        return StationForecast(
            station=name,
            state=state,
            from_step=planned.in_progress_step if state == "resume" else None,
            num_steps=job.nominal().steps,
            seconds=seconds,
            memory_bytes=peak_bytes(job, self.estimator.machine.gpu),
            download_bytes=download,
            disk_bytes=published_bytes(job),
            work_bytes=work_bytes(job),
            source=estimate.source,
            why=estimate.why,
        )

    def state(self, name: str) -> State:
        """What will become of a station."""
        planned = self.planned[name]
        if planned.state == "cached":
            return "cached"
        if planned.state == "unknown" and self.unforced[name].state == "cached":
            return "depends"
        return "resume" if planned.in_progress_step else "run"

    def job(self, name: str) -> Job:
        """The work of a station on the machine that is asked about."""
        machine = self.estimator.machine
        execution: Execution = getattr(self.resolved.preset.executions, name)
        numbers = _numbers(getattr(self.resolved.preset.recipes, name), machine)
        # What a forced station made before says nothing of what it has to do.
        metrics = {key: told for key, told in self.amounts.metrics.items() if key != name}
        amounts = Amounts(self.amounts.recipes, metrics)
        device = machine.device_type if name in JOBS else "cpu"
        return Job(name, amounts, execution, numbers, device, rates(machine, execution, numbers))

    def _estimate(self, job: Job, from_step: int) -> Estimate:
        nominal = job.nominal()
        if job.station in TRAINED:
            steps = nominal.steps * self.estimator.steps_ratio(job.station)
            nominal = nominal.with_steps(steps - from_step)
        how = None
        if nominal.compiling:
            timings = self.estimator.timings.made
            how = how_compiled(job, self.store, timings, self.estimator.machine, self._compiled)
            self._compiled.add(job.shape)
        return self.estimator.estimate(job.station, nominal, how, uses_device=job.station in JOBS)

    def _cached(self, planned: Planned) -> StationForecast:
        download = 0
        if planned.is_upstream:
            found = self._manifest(planned)
            download = 0 if found is None else found.bytes
        seconds = self.estimator.cached()
        if download:
            seconds = total([seconds, Range.around(download / DOWNLOAD_BYTES_PER_SECOND, 3.0)])
        return StationForecast(
            station=planned.station,
            state="cached",
            seconds=seconds,
            download_bytes=download,
            disk_bytes=download,
            why="from upstream" if planned.is_upstream else "",
        )

    def _download_bytes(self, planned: Planned) -> int:
        """Text from elsewhere, and inputs that lie in a store elsewhere."""
        paths = self.resolved.source_paths.get(planned.station, ())
        found = 0
        if any("://" in path and not path.startswith(("file:", "local:")) for path in paths):
            found += sum(file.bytes for file in self._files_elsewhere(planned))
        if self.store.files.local_path("") is None:
            inputs = [self._manifest(each) for each in planned.inputs.values()]
            new = [m for m in inputs if m is not None and m.digest not in self._fetched]
            self._fetched |= {manifest.digest for manifest in new}
            found += sum(manifest.bytes for manifest in new)
        return found

    def _files_elsewhere(self, planned: Planned) -> Iterator[FileDigest]:
        """Files of a source; of published shards those that are not in the store."""
        recipe: Any = planned.recipe
        source = recipe.get("source", recipe)
        for each in [source, *(part["source"] for part in source.get("parts", ()))]:
            for file in map(FileDigest.model_validate, each.get("files", ())):
                asked = shard_request(file)
                is_there = Manifests(self.store.files).numbers(asked.station, asked.fingerprint)
                if each.get("kind") != "hub" or not is_there:
                    yield file

    def _manifest(self, planned: Planned) -> Manifest | None:
        if planned.ref is None or planned.station == RELEASE:
            return None
        store = self.store.upstream if planned.is_upstream else self.store
        assert store is not None, "what is upstream was found in an upstream store"
        return _read(store, planned.ref)


def _read(store: ArtifactStore, ref: ArtifactRef) -> Manifest | None:
    try:
        return Manifests(store.files).read(ref.station, ref.fingerprint, ref.manifest)
    except NanochatError:
        return None  # The run will find it damaged, and say so.


def _numbers(recipe: Any, machine: Machine) -> Numbers:
    """What a station computes in; a data station in nothing that matters here."""
    asked = getattr(recipe, "compute_dtype", "float32")
    if asked == "auto":
        return "bfloat16" if computes_bfloat16(machine) else "float32"
    return next(numbers for numbers in NUMBER_BYTES if numbers == asked)
