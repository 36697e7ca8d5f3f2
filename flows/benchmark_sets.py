"""Official benchmarks in a run: which files a folder has, and what they mean for the stations."""

from flows.presets import Preset
from nanochat_core.benchmarks.files import expected_files
from nanochat_core.benchmarks.names import FROM_FILES, FileName
from nanochat_core.config.base import Recipe
from nanochat_core.data.benchmark_files import resolve_benchmark_files
from nanochat_core.evals.recipes import ChatEvalRecipe
from nanochat_core.training.recipes import RlRecipe

KNOWN_FILES = tuple(
    file
    for name in FROM_FILES
    for split in ("train", "test")
    for file in expected_files(name, split)
)


def with_benchmarks(preset: Preset, folder: str) -> Preset:
    """The preset with the benchmarks of a folder, whose tests are put to the chat models, too."""
    if not folder:
        return preset
    files = resolve_benchmark_files(folder, KNOWN_FILES)
    names = {file.name for file in files.files}
    recipes = preset.recipes
    changed = {
        station: _asking_also(getattr(recipes, station), tests_in(names))
        for station in ("chat_eval_sft", "chat_eval_rl")
    }
    recipes = recipes.model_copy(update={"benchmarks": files, **changed})
    return preset.model_copy(update={"recipes": recipes})


def tests_in(file_names: set[str]) -> tuple[FileName, ...]:
    """Benchmarks whose test rows are among the files."""
    return tuple(name for name in FROM_FILES if file_names & set(expected_files(name, "test")))


def reads_files(recipe: Recipe) -> bool:
    """Whether a station puts problems to its model that come from files."""
    if isinstance(recipe, RlRecipe):
        return recipe.task in FROM_FILES
    return isinstance(recipe, ChatEvalRecipe) and not set(FROM_FILES).isdisjoint(recipe.benchmarks)


def _asking_also(recipe: ChatEvalRecipe, names: tuple[FileName, ...]) -> ChatEvalRecipe:
    more = tuple(name for name in names if name not in recipe.benchmarks)
    return recipe.model_copy(update={"benchmarks": (*recipe.benchmarks, *more)})
