"""The line without making anything: what each station of a run would ask for, and what is there.

The flow's own body is followed (`flows.speedrun.follow`), so what goes into which station is said
once. What a station asks for is known only when all its inputs are made: their digests are in it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from flows.benchmark_sets import reads_files
from flows.parameters import ResolvedRun
from flows.saved_steps import saved_step
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from tasks.listening import Listener
from tasks.release import LATEST
from tasks.release import STATION as RELEASE
from tasks.stage import Run, Stage, StageCall

PlannedState = Literal["cached", "miss", "unknown"]
"""In the store, to be made, or not known until an input is made."""


@dataclass(frozen=True)
class Planned:
    """What is known about one station of a run before it starts."""

    station: str
    state: PlannedState
    inputs: dict[str, "Planned"] = field(default_factory=dict)
    """Those that become inputs of the artifact."""
    recipe: dict[str, Any] = field(default_factory=dict)
    code_version: int = 0
    request: Request | None = None
    """None while an input is not made, and of `release`, which asks for nothing."""
    ref: ArtifactRef | None = None
    is_forced: bool = False
    is_upstream: bool = False
    """Whether `ref` would be copied from the store upstream first."""
    in_progress_step: int | None = None
    """The last whole checkpoint of an unfinished attempt; 0 for work that has no checkpoint."""


class DryLine:
    """Follows the line as `flows.line.Line` does, and notes what each station would do."""

    def __init__(
        self,
        resolved: ResolvedRun,
        store: ArtifactStore,
        *,
        verify: bool = True,
        upstream: ArtifactStore | None = None,
    ) -> None:
        self.resolved, self.store, self.verify = resolved, store, verify
        self.upstream = upstream or store.upstream
        self.planned: dict[str, Planned] = {}
        self._run = Run(store, Listener())

    def make(
        self, stage: Stage, *, benchmarks: Planned | None = None, **inputs: Planned | None
    ) -> Planned | None:
        """What is known of a station; None where `Line.make` gives None."""
        name = stage.station
        present = {key: planned for key, planned in inputs.items() if planned is not None}
        if name not in self.resolved.stations or len(present) < len(inputs):
            return None
        recipe = getattr(self.resolved.preset.recipes, name)
        if benchmarks is not None and reads_files(recipe):
            present["benchmarks"] = benchmarks
        call = StageCall(self._run, recipe, getattr(self.resolved.preset.executions, name))
        self.planned[name] = self._planned(stage, call, present)
        return self.planned[name]

    def release(self, model: Planned | None) -> Planned | None:
        """Whether the names would move."""
        if model is None or RELEASE not in self.resolved.stations:
            return None
        names = (self.resolved.preset_name, LATEST)
        state: PlannedState = "unknown"
        if model.ref is not None:
            stand = all(self.store.alias(name) == model.ref for name in names)
            state = "cached" if stand else "miss"
        self.planned[RELEASE] = Planned(RELEASE, state, {model.station: model}, ref=model.ref)
        return model

    def _planned(self, stage: Stage, call: StageCall, inputs: dict[str, Planned]) -> Planned:
        name = stage.station
        is_forced = name in self.resolved.forced
        known = {key: planned.ref for key, planned in inputs.items() if planned.ref is not None}
        recipe = call.recipe.model_dump(mode="json")
        request = ref = step = None
        is_upstream = False
        state: PlannedState = "unknown"
        if len(known) == len(inputs):
            request = stage.request(call, known)
            ref = None if is_forced else self._lookup(self.store, request)
            if ref is None and self.upstream is not None and not is_forced:
                ref = self._lookup(self.upstream, request)
                is_upstream = ref is not None
            state = "miss" if ref is None else "cached"
            step = saved_step(self.store, request) if ref is None else None
        elif is_forced:
            state = "miss"
        return Planned(
            name,
            state,
            inputs,
            recipe,
            stage.code_version,
            request=request,
            ref=ref,
            is_forced=is_forced,
            is_upstream=is_upstream,
            in_progress_step=step,
        )

    def _lookup(self, store: ArtifactStore, request: Request) -> ArtifactRef | None:
        if self.verify:
            return store.lookup_here(request)
        manifest = Manifests(store.files).newest(request.station, request.fingerprint)
        return None if manifest is None else manifest.ref


def dry_run(
    resolved: ResolvedRun,
    store: ArtifactStore,
    *,
    verify: bool = True,
    upstream: ArtifactStore | None = None,
) -> dict[str, Planned]:
    """Every station that the run would enter, in order; without `verify` no file is read.

    What only the upstream has (by default that of the store) counts as cached; nothing is copied.
    """
    from flows.speedrun import follow  # imports Prefect

    line = DryLine(resolved, store, verify=verify, upstream=upstream)
    follow(line)
    return line.planned
