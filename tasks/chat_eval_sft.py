"""Station `chat_eval_sft`: benchmarks put to the fine-tuned model."""

from nanochat_core.config.job import StageOutput
from tasks.evaluating import evaluated
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 3


@stage("chat_eval_sft", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def chat_eval_sft(work: StageWork) -> StageOutput:
    """Measure the fine-tuned model."""
    return evaluated(work, "nanochat_core.jobs.chat_eval")
