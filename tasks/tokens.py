"""Station `tokens`: every shard as token ids and document lengths."""

from nanochat_core.config.job import StageOutput
from nanochat_core.data.recipes import TokensRecipe
from nanochat_core.data.token_files import build_tokens
from tasks.mapping import map_batches
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 1


@stage("tokens", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def tokens(work: StageWork) -> StageOutput:
    """Encode every document of every shard, each starting with BOS."""
    return build_tokens(
        TokensRecipe.model_validate(work.recipe),
        work.inputs["shards"],
        work.inputs["tokenizer"],
        work.output,
        workers=work.execution.workers,
        progress=work.progress,
        mapped=map_batches,
    )
