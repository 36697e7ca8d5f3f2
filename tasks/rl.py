"""Station `rl`: a chat model that was rewarded for right answers."""

from nanochat_core.config.job import StageOutput
from tasks.kernel_cache import shared_kernels
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 2


@stage("rl", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def rl(work: StageWork) -> StageOutput:
    """Let the chat model learn from its own replies; a lost job goes on from its checkpoint."""
    with shared_kernels(work.call.run.store, work.execution, work.report.log):
        return work.run_job("nanochat_core.jobs.rl")
