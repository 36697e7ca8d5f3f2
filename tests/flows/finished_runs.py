"""Runs that a store remembers: real requests of the real wiring, files of a few bytes, times made
up as a machine would have it that is so many times as slow as the closed forms say.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.dry_line import DryLine, Planned
from flows.forecast.amounts import Amounts
from flows.forecast.machine import machine_of
from flows.forecast.nominal import TRAINED, Job
from flows.forecast.rates import rates
from flows.parameters import ResolvedRun, parse_parameters, resolve
from flows.presets import MAKING_STATIONS
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.job import StageOutput
from tasks.listening import StageRecord
from tasks.stage import Stage

LAPTOP = {"cpus": 2, "machine": "x86_64", "cpu": "Test CPU", "platform": "Linux", "python": "3.11"}
TEXT = {"documents": 200, "characters": 363_000}
NUMBERS: dict[str, dict[str, Any]] = {
    "shards": TEXT,
    "tokenizer": {"vocab_size": 512},
    "tokens": {"characters_per_token": 2.2, "train_tokens": 160_000, "validation_tokens": 5_900},
}
WARM_STEPS = 10


class FinishedLine(DryLine):
    """Publishes what a run would make, and notes how long that is said to have taken."""

    def __init__(
        self, resolved: ResolvedRun, store: ArtifactStore, told: Mapping[str, Any], slow: float
    ) -> None:
        super().__init__(resolved, store)
        self.told, self.slow = told, slow
        self.records: dict[str, StageRecord] = {}
        recipes = {name: getattr(resolved.preset.recipes, name) for name in MAKING_STATIONS}
        self.amounts = Amounts(recipes, NUMBERS)

    def make(
        self, stage: Stage, *, benchmarks: Planned | None = None, **inputs: Planned | None
    ) -> Planned | None:
        planned = super().make(stage, benchmarks=benchmarks, **inputs)
        if planned is None or planned.request is None:
            return planned
        name, ref = stage.station, planned.ref
        if ref is not None:
            self.records[name] = StageRecord(station=name, state="cached", seconds=0.05, ref=ref)
            return planned
        seconds, metrics = self.times(name)
        ref = self._publish(planned, metrics)
        self.records[name] = StageRecord(
            station=name, state="made", seconds=seconds, ref=ref, metrics=metrics
        )
        return replace(planned, state="cached", ref=ref)

    def times(self, name: str) -> tuple[float, dict[str, Any]]:
        """Seconds of a station, and the numbers that its job would give."""
        machine = machine_of(self.told)
        assert machine is not None
        execution = getattr(self.resolved.preset.executions, name)
        figures = rates(machine, execution, "float32")
        job = Job(name, self.amounts, execution, "float32", machine.device_type, figures)
        nominal = job.nominal()
        step = self.slow * nominal.step
        seconds = self.slow * nominal.around("cold") + nominal.steps * step
        if name not in TRAINED:
            return seconds, NUMBERS.get(name, {})
        counted = max(nominal.steps - WARM_STEPS, 0)
        return seconds, {"steps": nominal.steps, "total_training_time": counted * step}

    def _publish(self, planned: Planned, metrics: dict[str, Any]) -> ArtifactRef:
        assert planned.request is not None
        folder = self.store.generation(planned.request, fresh=True)
        folder.joinpath("result.txt").write_text(planned.request.fingerprint)
        refs = {name: known.ref for name, known in planned.inputs.items() if known.ref}
        execution = getattr(self.resolved.preset.executions, planned.station)
        told = {**self.told, "execution": execution.model_dump(mode="json")}
        output = StageOutput(files={"result.txt": "result"}, metrics=metrics)
        ref = self.store.publish(planned.request, folder, output, input_refs=refs, provenance=told)
        self.store.discard_generations(planned.request)
        return ref


def tiny(store: ArtifactStore, **values: Any) -> ResolvedRun:
    """What `nanochat run tiny` with these parameters would do."""
    return resolve(parse_parameters({"preset": "tiny", "store": store.url, **values}), {})


def finish(
    store: ArtifactStore,
    run: str = "20260101-000000-aaaaaa",
    *,
    slow: float = 1.0,
    told: Mapping[str, Any] | None = None,
    **values: Any,
) -> dict[str, StageRecord]:
    """Leave a finished run in the store, of a machine `slow` times as slow as the reference."""
    from flows.speedrun import follow

    provenance = {"hardware": LAPTOP, "device_type": "cpu", "compute_dtype": "float32"}
    line = FinishedLine(tiny(store, **values), store, {**provenance, **(told or {})}, slow)
    either: Any = line
    follow(either)
    stations = {name: record.model_dump(mode="json") for name, record in line.records.items()}
    store.save_run(run, {"run": run, "stations": stations})
    return line.records


def open_store(folder: Path) -> ArtifactStore:
    """A store in a folder."""
    return ArtifactStore(str(folder / "store"))
