"""Station `chat_eval_sft`: held-out questions put to the chat model."""

from nanochat_core.config.job import StageOutput
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage
from tasks.torchrun import run_job

CODE_VERSION = 1


@stage("chat_eval_sft", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def chat_eval_sft(work: StageWork) -> StageOutput:
    """Ask the chat model about itself and let it do sums."""
    return run_job("nanochat_core.jobs.chat_eval_sft", work.job_spec(), report=work.report)
