"""A host of a fleet that makes one stage: `counting_trainer.py` as its job, under the supervisor.

python counting_host.py STORE_URL CACHE_FOLDER LEASE_SECONDS NUM_STEPS SECONDS_PER_STEP
"""

import sys
from pathlib import Path

from prefect import flow

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.base import Recipe
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import StageOutput
from tasks.listening import Listener, StageRecord
from tasks.stage import Run, StageCall, StageWork, stage
from tasks.torchrun import run_supervised

TRAINER = Path(__file__).with_name("counting_trainer.py")


class CountingRecipe(Recipe):
    num_steps: int


def count(
    store: ArtifactStore, num_steps: int, seconds: float, *, force: bool = False
) -> StageRecord:
    """Make the stage as a flow does, waiting for others."""

    @stage("counting", code_version=1)
    def counting(work: StageWork) -> StageOutput:
        command = [sys.executable, str(TRAINER), str(work.output), str(num_steps), str(seconds)]
        watch = work.lease.check
        return run_supervised(command, work.job_spec(), report=work.report, watch=watch)

    run = Run(store, Listener(), wait=True)
    recipe, execution = CountingRecipe(num_steps=num_steps), Execution(grace_seconds=4.0)

    @flow
    def host() -> ArtifactRef:
        return counting(StageCall(run, recipe, execution, force=force), {})

    host()
    return run.records["counting"]


def main(url: str, cache: str, ttl: str, num_steps: str, seconds: str) -> None:
    store = ArtifactStore(url, cache_folder=Path(cache), lease_seconds=float(ttl))
    count(store, int(num_steps), float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
