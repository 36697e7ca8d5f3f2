"""Published sets and own conversations in a run: their files, and what they mean for stations."""

from collections.abc import Sequence

from flows.presets import Preset
from nanochat_core.benchmarks.files import expected_files
from nanochat_core.benchmarks.names import FROM_FILES, FileName
from nanochat_core.benchmarks.official_files import CORE_FILE
from nanochat_core.benchmarks.pools import part_files
from nanochat_core.config.base import Recipe
from nanochat_core.conversation.recipes import SET_KINDS, MixturePart
from nanochat_core.data.benchmark_files import OwnFile, resolve_benchmark_files, resolve_own_files
from nanochat_core.data.conversation_files import check_conversations
from nanochat_core.data.recipes import BenchmarksRecipe
from nanochat_core.errors import ConfigError
from nanochat_core.evals.recipes import BaseEvalRecipe, ChatEvalRecipe
from nanochat_core.training.recipes import RlRecipe, SftRecipe

KNOWN_FILES = (
    CORE_FILE,
    *(
        file
        for name in dict.fromkeys((*FROM_FILES, *SET_KINDS))
        for split in ("train", "test")
        for file in expected_files(name, split)
    ),
)


def with_benchmarks(preset: Preset, folder: str, conversations: Sequence[str] = ()) -> Preset:
    """The preset with the files of a folder and with own conversations (`FILE` or `FILE@EPOCHS`).

    Tests that the folder has are put to the chat models, too, and the tasks of CORE to the base
    model instead of those of held-out text. Of the parts of the mixture that
    are read from files, those stay whose file is there; own conversations are parts of their own,
    checked line by line here.
    """
    own = tuple(map(OwnFile.parse, conversations))
    found = resolve_benchmark_files(folder, KNOWN_FILES).files if folder else ()
    own_files = resolve_own_files(own, KNOWN_FILES)
    for file in own:
        check_conversations(file.place)
    names = {file.name for file in (*found, *own_files)}
    recipes = preset.recipes
    changed: dict[str, Recipe] = {
        station: _asking_also(getattr(recipes, station), tests_in(names))
        for station in ("chat_eval_sft", "chat_eval_rl")
    }
    files = BenchmarksRecipe(files=(*found, *own_files))
    changed["sft"] = _taught(recipes.sft, names, own)
    if CORE_FILE in names:
        changed["base_eval"] = recipes.base_eval.model_copy(update={"core_bundle": CORE_FILE})
    recipes = recipes.model_copy(update={"benchmarks": files, **changed})
    return preset.model_copy(update={"recipes": recipes})


def tests_in(file_names: set[str]) -> tuple[FileName, ...]:
    """Benchmarks whose test rows are among the files."""
    return tuple(name for name in FROM_FILES if file_names & set(expected_files(name, "test")))


def left_out(before: Preset, after: Preset) -> tuple[str, ...]:
    """Of the conversations that a preset would teach, those whose files are not there, in words."""
    kept = {part.label for part in after.recipes.sft.mixture.parts}
    missing = [p for p in before.recipes.sft.mixture.read_parts if p.label not in kept]
    return tuple(
        f"fine-tuning goes without {part.label}: no {part_files(part)[0]} (or .parquet) is given "
        "with --benchmarks; nanochat data fetch gets it"
        for part in missing
    )


def check_conversations_at_hand(preset: Preset, stations: Sequence[str]) -> None:
    """Refuse a mixture with a part whose file is not among those of the run."""
    names = {file.name for file in preset.recipes.benchmarks.files}
    for part in preset.recipes.sft.mixture.read_parts:
        files = part_files(part)
        if "sft" not in stations or names & set(files):
            continue
        if part.kind == "jsonl":
            raise ConfigError(
                f"sft.mixture names the file {part.file}, which is not given; give it with "
                f"--conversations {part.file}"
            )
        raise ConfigError(
            f"sft.mixture needs the train rows of {part.kind}; put {' or '.join(files)} into a "
            "folder and give it with --benchmarks"
        )


def reads_files(recipe: Recipe) -> bool:
    """Whether a station takes problems or conversations from files."""
    if isinstance(recipe, RlRecipe):
        return recipe.task in FROM_FILES
    if isinstance(recipe, SftRecipe):
        return bool(recipe.mixture.read_parts)
    if isinstance(recipe, BaseEvalRecipe):
        return bool(recipe.core_bundle)
    return isinstance(recipe, ChatEvalRecipe) and not set(FROM_FILES).isdisjoint(recipe.benchmarks)


def _taught(recipe: SftRecipe, names: set[str], own: Sequence[OwnFile]) -> SftRecipe:
    parts = tuple(
        part for part in recipe.mixture.parts if part.is_made or names & set(part_files(part))
    )
    parts += tuple(MixturePart(kind="jsonl", file=file.name, epochs=file.epochs) for file in own)
    mixture = recipe.mixture.model_copy(update={"parts": parts})
    return recipe.model_copy(update={"mixture": mixture})


def _asking_also(recipe: ChatEvalRecipe, names: tuple[FileName, ...]) -> ChatEvalRecipe:
    more = tuple(name for name in names if name not in recipe.benchmarks)
    return recipe.model_copy(update={"benchmarks": (*recipe.benchmarks, *more)})
