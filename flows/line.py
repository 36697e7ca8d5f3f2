"""One run of the line: which stations are made, from what, and the record that stays of it."""

import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from prefect import get_run_logger

from flows.benchmark_sets import reads_files
from flows.elsewhere import make_elsewhere
from flows.gpu_slot import gpu_slot
from flows.parameters import ResolvedRun, RunParameters, resolve
from flows.predicted import comparison_line, comparison_page, predicted
from flows.presets import JOB_STATIONS
from flows.stage_run import StageAsked, open_run_store
from flows.this_machine import this_machine
from nanochat_core.artifacts.threads import without_patience
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.errors import StoreError
from tasks.listening import current_listener
from tasks.release import STATION as RELEASE
from tasks.release import release
from tasks.reporting import publish_run_report
from tasks.stage import Run, Stage, StageCall

Made = TypeVar("Made")


class AnyLine(Protocol[Made]):
    """What the line is written for: a run, or a look at what a run would do."""

    def make(
        self, stage: Stage, *, benchmarks: Made | None = None, **inputs: Made | None
    ) -> Made | None:
        """The artifact of a station, from these inputs; None when there is none."""

    def release(self, model: Made | None) -> Made | None:
        """Give the model the names by which people ask for it."""


class Line:
    """Hands each station what it needs; stations after `stop_after` are left out."""

    def __init__(self, parameters: RunParameters) -> None:
        # The flow is an entry: the environment is read here, once, and passed down as values.
        environ: Mapping[str, str] = os.environ  # noqa: TID251
        self.parameters = parameters
        self.resolved: ResolvedRun = resolve(parameters, environ)
        self.run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
        store = open_run_store(self.resolved.store_url, self.resolved.upstream_url)
        self.run = Run(
            store,
            current_listener(),
            wait=parameters.wait,
            provenance={
                "run": self.run_id,
                "preset": self.resolved.preset_name,
                **this_machine(),
            },
        )
        self.forecast = predicted(self.resolved, store)
        self._start = time.monotonic()
        for warning in self.resolved.warnings:
            get_run_logger().warning(warning)
        self.run.listener.planned(self.resolved.stations)

    def make(
        self,
        stage: Stage,
        *,
        benchmarks: ArtifactRef | None = None,
        **inputs: ArtifactRef | None,
    ) -> ArtifactRef | None:
        """The artifact of a station: found in the store, or made.

        None after the last station, without one of its inputs, and for a station that this run
        leaves out. `benchmarks` becomes an input where the recipe reads some.
        """
        name = stage.station
        present = {key: ref for key, ref in inputs.items() if ref is not None}
        if name not in self.resolved.stations or len(present) < len(inputs):
            return None
        recipe = getattr(self.resolved.preset.recipes, name)
        if benchmarks is not None and reads_files(recipe):
            present["benchmarks"] = benchmarks
        call = StageCall(
            self.run,
            recipe,
            getattr(self.resolved.preset.executions, name),
            force=name in self.resolved.forced,
        )
        call.source_paths = self.resolved.source_paths.get(name, ())
        if name in JOB_STATIONS:
            call.slot = gpu_slot
        pool = self.resolved.pools.get(name)
        if pool is None:
            return stage(call, present)
        return self._make_elsewhere(stage, call, present, pool)

    def _make_elsewhere(
        self, stage: Stage, call: StageCall, inputs: Mapping[str, ArtifactRef], pool: str
    ) -> ArtifactRef:
        request = stage.request(call, inputs)
        if not call.force and self.run.store.lookup(request):
            # What is there already needs no worker.
            return stage(call, inputs)
        asked = StageAsked(
            station=stage.station,
            recipe=request.recipe,
            execution=call.execution,
            inputs=dict(inputs),
            source_paths=call.source_paths,
            # As they are known here: a worker has a working folder of its own.
            store=self.run.store.url,
            upstream=self.run.store.upstream.url if self.run.store.upstream else "",
            force=call.force,
            # After the death of this flow its stages elsewhere work on, and the next run waits.
            wait=True,
            provenance=self.run.provenance,
        )
        return make_elsewhere(self.run, asked, request, pool)

    def release(self, model: ArtifactRef | None) -> ArtifactRef | None:
        """Let the preset's alias and `latest` name the model."""
        if model is None or RELEASE not in self.resolved.stations:
            return None
        return release(self.run, self.resolved.preset_name, model)

    def __enter__(self) -> "Line":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        # Prefect kills soon after a stop, so nobody waits for the store then.
        is_stop = error is not None and not isinstance(error, Exception)
        # The record first: it is what stays when the report cannot be shown.
        try:
            with without_patience() if is_stop else nullcontext():
                self.run.store.save_run(self.run_id, self.record(kind, error))
        except StoreError as trouble:
            if error is None:
                raise
            # What went wrong first is what matters.
            get_run_logger().warning("the run record was not saved: %s", trouble)
        publish_run_report(
            self.run_id,
            self.run.records.values(),
            more=comparison_page(self.forecast, self.run.records),
        )
        if error is None and (line := comparison_line(self.forecast, self.run.records)):
            self.run.listener.concluded(line)

    def record(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None
    ) -> dict[str, Any]:
        """What is kept of a run: parameters, every station and how it went, the machine."""
        return {
            "run": self.run_id,
            "parameters": self.parameters.model_dump(mode="json"),
            "state": "completed" if kind is None else f"{kind.__name__}: {error}",
            "seconds": round(time.monotonic() - self._start, 3),
            "stations": {
                name: record.model_dump(mode="json") for name, record in self.run.records.items()
            },
            "forecast": self.forecast and self.forecast.model_dump(mode="json"),
            **self.run.provenance,
        }
