"""Station `benchmarks`: files of published sets, as they are, and of own conversations."""

from nanochat_core.benchmarks.official_files import CORE_FILE
from nanochat_core.benchmarks.open import check_files
from nanochat_core.config.job import StageOutput
from nanochat_core.data.benchmark_files import OwnFile, copy_benchmark_files
from nanochat_core.data.recipes import BenchmarksRecipe
from nanochat_core.evals.bundle_places import open_bundle
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 1


@stage("benchmarks", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def benchmarks(work: StageWork) -> StageOutput:
    """Copy the planned files into the store, verified, and read every row of them."""
    recipe = BenchmarksRecipe.model_validate(work.recipe)
    folder, *paths = work.source_paths
    own = tuple(map(OwnFile.parse, paths))
    copied = copy_benchmark_files(recipe, folder, str(work.output), work.progress, own)
    # A row of another form must not end the run hours later, when it is asked.
    num_rows = check_files(work.output)
    if any(file.name == CORE_FILE for file in recipe.files):
        _, bundle = open_bundle(work.output / CORE_FILE, work.work)
        num_rows += sum(len(task.read_examples()) for task in bundle.tasks)
    return copied.model_copy(update={"metrics": {**copied.metrics, "rows": num_rows}})
