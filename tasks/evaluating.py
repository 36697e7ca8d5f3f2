"""How a stage evaluates a model: asked is what no earlier run has found out."""

import logging
import shutil
from functools import partial

from nanochat_core.config.job import JobSpec, StageOutput
from nanochat_core.evals.kept_scores import SCORES_INPUT
from tasks.cancelling import CancelWatch
from tasks.kept_scores import evaluate
from tasks.stage import StageWork
from tasks.torchrun import run_job


def evaluated(work: StageWork, module: str) -> StageOutput:
    """The output of a job that evaluates; a forced stage asks everything again."""

    def run(spec: JobSpec) -> StageOutput:
        with CancelWatch():
            return run_job(module, spec, report=work.report, watch=work.lease.check)

    if work.call.force and work.call.attempts == 1:
        # An interrupted run may have put scores there that it had found known.
        shutil.rmtree(work.work / SCORES_INPUT, ignore_errors=True)
    return evaluate(
        work.job_spec(),
        work.call.run.store,
        work.input_refs,
        run,
        fresh=work.call.force,
        tell=partial(work.report.log, logging.INFO),
    )
