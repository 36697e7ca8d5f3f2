"""Station `chat_eval_sft`: benchmarks put to the fine-tuned model."""

from nanochat_core.config.job import StageOutput
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 3


@stage("chat_eval_sft", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def chat_eval_sft(work: StageWork) -> StageOutput:
    """Measure the fine-tuned model."""
    return work.run_job("nanochat_core.jobs.chat_eval")
