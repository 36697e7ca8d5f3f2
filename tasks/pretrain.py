"""Station `pretrain`: a base model, trained on the token files by torchrun."""

from nanochat_core.config.job import StageOutput
from tasks.kernel_cache import shared_kernels
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 1


@stage("pretrain", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def pretrain(work: StageWork) -> StageOutput:
    """Train a base model; a lost job goes on from its last checkpoint."""
    with shared_kernels(work.call.run.store, work.execution, work.report.log):
        return work.run_job("nanochat_core.jobs.pretrain")
