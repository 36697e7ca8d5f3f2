"""Station `sft`: a chat model, fine-tuned from the base model on conversations."""

from nanochat_core.config.job import StageOutput
from tasks.kernel_cache import shared_kernels
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 2


@stage("sft", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def sft(work: StageWork) -> StageOutput:
    """Teach the base model to converse; a lost job goes on from its last checkpoint."""
    with shared_kernels(work.call.run.store, work.execution, work.report.log):
        return work.run_job("nanochat_core.jobs.sft")
