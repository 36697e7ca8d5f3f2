"""A whole line published in moments: real requests of the real wiring, files of a few bytes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.dry_line import DryLine, Planned
from flows.parameters import ResolvedRun, parse_parameters, resolve
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput
from tasks.stage import Stage

RUN = "20260101-000000-abcdef"
Change = Callable[[Request], Request]


class MadeLine(DryLine):
    """Publishes what a run would make: a file with the fingerprint, which so decides the digest.

    `changes` let single stations ask for something else than the run does.
    """

    def __init__(
        self, resolved: ResolvedRun, store: ArtifactStore, changes: Mapping[str, Change]
    ) -> None:
        super().__init__(resolved, store)
        self.changes = changes

    def make(
        self, stage: Stage, *, benchmarks: Planned | None = None, **inputs: Planned | None
    ) -> Planned | None:
        planned = super().make(stage, benchmarks=benchmarks, **inputs)
        if planned is None or planned.request is None:
            return planned
        asked = self.changes.get(stage.station, lambda request: request)(planned.request)
        refs = {name: known.ref for name, known in planned.inputs.items() if known.ref}
        ref = self.store.lookup(asked) or publish(self.store, asked, refs)
        return replace(planned, state="cached", ref=ref)


def publish(
    store: ArtifactStore,
    request: Request,
    refs: Mapping[str, ArtifactRef],
    *,
    text: str = "",
    run: str = RUN,
    force: bool = False,
) -> ArtifactRef:
    """Publish one artifact of a few bytes, as a stage does."""
    folder = store.generation(request, fresh=True)
    folder.joinpath("result.txt").write_text(text or request.fingerprint)
    provenance = {"run": run, "preset": "tiny", "seconds": 1.5, "packages": {"torch": "2.13"}}
    output = StageOutput(files={"result.txt": "result"}, metrics={"steps": 3})
    known = {name: ref for name, ref in refs.items() if name in request.inputs}
    ref = store.publish(
        request, folder, output, input_refs=known, provenance=provenance, replace=force
    )
    store.discard_generations(request)
    return ref


def resolved_run(store: Path, **values: Any) -> ResolvedRun:
    """What `nanochat run tiny` with these parameters would do."""
    return resolve(parse_parameters({"preset": "tiny", "store": str(store), **values}), {})


def make_line(store: ArtifactStore, resolved: ResolvedRun, **changes: Change) -> None:
    """Publish every station that is not there yet."""
    from flows.speedrun import follow

    line: Any = MadeLine(resolved, store, changes)
    follow(line)
