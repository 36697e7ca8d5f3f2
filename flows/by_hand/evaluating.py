"""Evaluations by hand: what an earlier run or command has asked is not asked again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from flows.by_hand.planning import Planned
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.job import JobSpec, StageOutput
from nanochat_core.evals.kept_scores import SCORES_INPUT, forget_published
from nanochat_core.evals.score_table import SCORES_FILE, score_lines
from tasks.kept_scores import Keeper, asked_of, evaluate
from tasks.torchrun import Report, run_job


class Terminal(Report, Protocol):
    """Whoever reads along."""

    def say(self, line: str) -> None:
        """Show a line."""


def evaluated(planned: Planned, spec: JobSpec, terminal: Terminal) -> StageOutput:
    """The output of an evaluation, by a job unless everything is known."""
    has_job = False

    def run(asked: JobSpec) -> StageOutput:
        nonlocal has_job
        has_job = True
        module = f"nanochat_core.jobs.{planned.station}"
        return run_job(module, asked, report=terminal)

    output = evaluate(
        spec, planned.store, refs_of(planned), run, fresh=planned.fresh, tell=terminal.say
    )
    if not has_job:
        terminal.say("(--fresh asks again)")
        scores = json.loads(Path(spec.output_folder, SCORES_FILE).read_bytes())
        for line in score_lines(scores):
            terminal.say(line)
    return output


def with_known_scores(planned: Planned, spec: JobSpec, tell: Callable[[str], None]) -> JobSpec:
    """The job of a process that becomes it; the next command publishes what that finds."""
    refs = refs_of(planned)
    asked = asked_of(spec, planned.store, refs)
    return Keeper(planned.store, asked, refs, fresh=planned.fresh, tell=tell).hand_over().spec


def refs_of(planned: Planned) -> dict[str, ArtifactRef]:
    """The inputs that lie in the store."""
    sources = planned.sources.items()
    return {name: source.ref for name, source in sources if source.ref is not None}


def clear_work(work: Path, *, fresh: bool) -> None:
    """Forget what an earlier evaluation has left, save scores that the store does not have.

    With `fresh` these go, too.
    """
    forget_published(work / SCORES_INPUT)
    for path in work.iterdir() if work.is_dir() else ():
        if path.is_dir() and (fresh or path.name != SCORES_INPUT):
            shutil.rmtree(path, ignore_errors=True)
        elif not path.is_dir():
            path.unlink(missing_ok=True)
