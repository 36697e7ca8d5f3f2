"""Station `chat_eval_rl`: benchmarks put to the model that reinforcement learning made."""

from nanochat_core.config.job import StageOutput
from tasks.evaluating import evaluated
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 2


@stage("chat_eval_rl", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def chat_eval_rl(work: StageWork) -> StageOutput:
    """Measure the reinforced model, on what the fine-tuned one was measured on."""
    return evaluated(work, "nanochat_core.jobs.chat_eval")
