"""Station `base_eval`: bits per byte, in-context tasks and samples of the base model."""

from nanochat_core.config.job import StageOutput
from tasks.evaluating import evaluated
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 2


@stage("base_eval", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def base_eval(work: StageWork) -> StageOutput:
    """Measure the base model on held-out text and tasks."""
    return evaluated(work, "nanochat_core.jobs.base_eval")
