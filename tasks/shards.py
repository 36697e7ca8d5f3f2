"""Station `shards`: text from installed documentation or the user's files, as parquet shards."""

from nanochat_core.config.job import StageOutput
from nanochat_core.data.recipes import ShardsRecipe
from nanochat_core.data.shards import build_shards
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 1


@stage("shards", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def shards(work: StageWork) -> StageOutput:
    """Collect documents, hold some out for validation, write them as parquet shards."""
    recipe = ShardsRecipe.model_validate(work.recipe)
    return build_shards(
        recipe,
        work.source_paths,
        work.output,
        workers=work.execution.workers,
        progress=work.progress,
    )
