"""The points of a sweep, made one after another as runs inside of its flow, and the page of all."""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from prefect import Task
from prefect.cache_policies import NO_CACHE

from flows.closing import report_place
from flows.parameters import resolve
from flows.speedrun import speedrun
from flows.stage_run import open_run_store
from flows.sweeps.eta import TimeLeft
from flows.sweeps.gpus import gpus_of_jobs
from flows.sweeps.listening import Recorder, Told, sweep_listener
from flows.sweeps.parameters import AnySweep
from flows.sweeps.planning import PlannedPoint, plan_sweep, plan_words, with_times
from flows.sweeps.points import Point, expand
from flows.sweeps.side_by_side import SideBySide
from flows.this_machine import this_machine
from nanochat_core.artifacts.types import SWEEP_STATION, ArtifactRef
from nanochat_core.config.execution import Execution
from nanochat_core.errors import JobError
from nanochat_core.report.sweeps.page import TEXT_FILE
from nanochat_core.report.sweeps.recipe import POINT_STATIONS, SweepPoint, SweepRecipe, input_name
from tasks.cancelling import ASK_SECONDS, CancelWatch
from tasks.listening import Listener, listening
from tasks.stage import Run, StageCall
from tasks.sweep import sweep as sweep_stage


class Sweep:
    """The points of a sweep, what became of them, and the page about them."""

    def __init__(self, asked: AnySweep) -> None:
        # The flow is an entry: the environment is read here, once, and passed down as values.
        self._environ: Mapping[str, str] = os.environ  # noqa: TID251
        self.asked = asked
        self.listener = sweep_listener()
        self.told: dict[str, Told] = {}
        """Label -> how the point went."""
        points = expand(asked)
        first = resolve(points[0].parameters, self._environ)
        self.run = Run(
            open_run_store(first.store_url, first.upstream_url),
            self.listener,
            wait=asked.wait,
            provenance={
                "run": f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}",
                "preset": asked.preset,
                **this_machine(),
            },
        )
        plan = plan_sweep(points, self._environ, self.run.store)
        self.plan = with_times(plan, self.run.store)
        self._left = TimeLeft([each.seconds for each in self.plan], asked.jobs)
        self.listener.sweep_planned(len(self.plan), plan_words(self.plan), self._left.seconds)

    def make_points(self) -> None:
        """Make every point, and first what they share; one that fails does not stop the rest.

        The stages of a point look whether that is being cancelled, and know nothing of the sweep.
        """
        with CancelWatch(ASK_SECONDS):
            self._make_points()

    def _make_points(self) -> None:
        if self.asked.jobs > 1:
            self._make_side_by_side()
        for place, planned in enumerate(self.plan):
            was = self.told.get(planned.point.label)
            if was is None:
                self.listener.point_started(planned.point.label)
                self._keep(place, make_point(planned.point, self.listener))
            elif not was.error and not planned.point.is_beginning:
                # Made in another process: what it made is found here, without a word.
                found = make_point(planned.point, Listener())
                self.told[found.label] = replace(found, seconds=was.seconds)

    def write_results(self) -> ArtifactRef:
        """The table, the page and the plots of all points that were made; names them, too.

        Raises JobError, after that, when points have failed.
        """
        points = [each for each in self.plan if not each.point.is_beginning]
        made = [each for each in points if not self._told(each).error]
        failed = [self._told(each) for each in points if self._told(each).error]
        if not made:
            raise JobError(_failures(failed, len(points)))
        recipe = SweepRecipe(
            kind=self.asked.kind,
            points=tuple(
                SweepPoint(label=each.point.label, values=dict(each.point.values)) for each in made
            ),
            failed=tuple(told.label for told in failed),
            price_per_hour=self.asked.price_per_hour,
        )
        self.listener.planned((SWEEP_STATION,))
        ref = sweep_stage(StageCall(self.run, recipe, Execution()), self._inputs(made))
        _name_task(self.run, self.asked.kind.replace("_", "-"), ref)
        self._conclude(ref)
        if failed:
            raise JobError(_failures(failed, len(points)))
        return ref

    def _make_side_by_side(self) -> None:
        # What is all there is found sooner than a process has started.
        places = {i: each for i, each in enumerate(self.plan) if each.seconds != 0}
        slots = gpus_of_jobs([each.run for each in self.plan], self.asked.jobs, self._environ)
        with SideBySide(places, slots, self._environ, self.listener) as processes:
            for place, told in processes.ended():
                self._keep(place, told)

    def _keep(self, place: int, told: Told) -> None:
        self._left.ended(place, told.seconds, was_made=told.state in ("made", "resumed"))
        self.told[told.label] = replace(told, seconds_left=self._left.seconds)
        self.listener.point_ended(self.told[told.label])

    def _told(self, planned: PlannedPoint) -> Told:
        return self.told[planned.point.label]

    def _inputs(self, made: list[PlannedPoint]) -> dict[str, ArtifactRef]:
        return {
            input_name(index, station): record.ref
            for index, planned in enumerate(made)
            for station, record in self._told(planned).records.items()
            if station in POINT_STATIONS and record.ref is not None
        }

    def _conclude(self, ref: ArtifactRef) -> None:
        store = self.run.store
        table = (store.materialize(ref) / TEXT_FILE).read_text(encoding="utf-8")
        for line in ("", *table.rstrip().splitlines(), ""):
            self.listener.concluded(line)
        place = report_place(store, ref).removesuffix("report.md")
        self.listener.concluded(f"Page, table and plots:  {place}")


def make_point(point: Point, listener: Listener) -> Told:
    """Run one point as a flow inside of this one; an error is told, a stop is passed on."""
    recorder, start = Recorder(listener), time.monotonic()
    # The name is a template, in which braces would mean something.
    name = point.label.replace("{", "{{").replace("}", "}}")
    flow: Any = speedrun.with_options(flow_run_name=name)
    with listening(recorder):
        state = flow(**point.parameters.model_dump(), return_state=True)
    error = ""
    if not state.is_completed():
        found = state.result(raise_on_failure=False)
        error = str(found) or type(found).__name__
    return Told(point.label, time.monotonic() - start, recorder.records, error)


def _failures(failed: list[Told], num_points: int) -> str:
    lines = [f"  {told.label}: {told.error.partition(chr(10))[0]}" for told in failed]
    return "\n".join(
        [
            f"{len(failed)} of {num_points} points failed:",
            *lines,
            "Run the same command again to try them again; all others are kept.",
        ]
    )


def _name(run: Run, name: str, ref: ArtifactRef) -> None:
    """Let a name of its own stand for the newest sweep of a kind."""
    run.store.set_alias(name, ref)


_name_task: Any = Task(
    _name, name="release", task_run_name="release", cache_policy=NO_CACHE, persist_result=False
)
