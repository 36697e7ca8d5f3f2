"""How much there is to do in each station, in closed form: characters, tokens, steps, replies.

What is in the store already is exact (`metrics` of artifacts); the rest follows from the recipes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from nanochat_core.benchmarks.amounts import expected_characters
from nanochat_core.benchmarks.names import OFFICIAL_TEST_ROWS
from nanochat_core.config.base import Recipe
from nanochat_core.data.hub_shards import CHARACTERS_PER_BYTE
from nanochat_core.data.recipes import (
    BenchmarksRecipe,
    FilesSource,
    HarvestSource,
    HubSource,
    MixtureSource,
    ShardsRecipe,
)
from nanochat_core.evals.looks import TrainingLooks
from nanochat_core.evals.recipes import BaseEvalRecipe, ChatEvalRecipe
from nanochat_core.model.counts import parameter_counts
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.training.dial import TrainingPlan, plan_training
from nanochat_core.training.recipes import PretrainRecipe, RlRecipe, SftRecipe

STANDARD_LIBRARY_CHARACTERS = 1_500_000
DISTRIBUTION_CHARACTERS = 43_000
"""Prose in an installed distribution, about: 93 of them and the standard library gave 5.56 M."""
DOCUMENT_CHARACTERS = 1_200
CHARACTERS_PER_TOKEN = {512: 2.2, 2048: 3.5, 8192: 4.1, 32768: 4.7, 65536: 4.9}
"""By size of the vocabulary: the first two measured on documentation, the others on web text."""
REPLY_TOKENS = {"sums": 20, "gsm8k": 120}
"""Tokens of a reply, about; the longest one of a batch decides how long that takes."""
TASK_EXAMPLES, EXAMPLE_TOKENS = 600, 60
"""In-context examples that base_eval makes of held-out documents."""
QUESTION_TOKENS = 100

R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class Amounts:
    """The recipes of a run, or of what led to one artifact, and what is known of its results."""

    recipes: Mapping[str, Recipe]
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Station -> numbers of its artifact, where there is one."""

    def recipe(self, station: str, kind: type[R]) -> R:
        """The recipe of a station, which is of this class."""
        found = self.recipes[station]
        assert isinstance(found, kind), f"{station} has a {type(found).__name__}"
        return found

    def known(self, station: str, metric: str) -> float | None:
        """A number of an artifact that is there."""
        value = self.metrics.get(station, {}).get(metric)
        return float(value) if isinstance(value, int | float) else None

    @cached_property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary."""
        made = self.known("tokenizer", "vocab_size")
        return int(made or self.recipe("tokenizer", TokenizerRecipe).vocab_size)

    @property
    def is_harvest(self) -> bool:
        """Whether the text is the documentation of what is installed."""
        return isinstance(self.recipe("shards", ShardsRecipe).source, HarvestSource)

    @cached_property
    def distributions(self) -> int:
        """Installed distributions whose documentation is read."""
        source = self.recipe("shards", ShardsRecipe).source
        if not isinstance(source, HarvestSource):
            return 0
        return _installed(source)

    @cached_property
    def characters(self) -> float:
        """Characters of all documents."""
        made = self.known("shards", "characters")
        return made if made is not None else self._planned_characters()

    def _planned_characters(self) -> float:
        recipe = self.recipe("shards", ShardsRecipe)
        found = _characters_of(recipe.source)
        return min(found, recipe.max_documents * DOCUMENT_CHARACTERS or found)

    @cached_property
    def characters_per_token(self) -> float:
        """How much text a token stands for."""
        made = self.known("tokens", "characters_per_token")
        sizes = sorted(CHARACTERS_PER_TOKEN)
        nearest = min(sizes, key=lambda size: abs(math.log(size / self.vocab_size)))
        return made or CHARACTERS_PER_TOKEN[nearest]

    @cached_property
    def validation_tokens(self) -> float:
        """Tokens that are held out."""
        made = self.known("tokens", "validation_tokens")
        share = self.recipe("shards", ShardsRecipe).validation_percent / 100
        return made if made is not None else share * self.characters / self.characters_per_token

    @cached_property
    def plan(self) -> TrainingPlan:
        """What the dial makes of the recipe of pretraining."""
        return plan_training(self.recipe("pretrain", PretrainRecipe), self.vocab_size)

    @cached_property
    def parameters(self) -> int:
        """Numbers of the model."""
        return parameter_counts(self.plan.model).total

    def steps(self, station: str) -> int:
        """Optimizer steps of a training station; 0 of any other."""
        made = self.known(station, "steps")
        if made is not None:
            return int(made)
        if station == "pretrain":
            return self.plan.num_iterations
        if station == "sft":
            return self._sft_steps()
        return self._rl_steps() if station == "rl" else 0

    def _sft_steps(self) -> int:
        recipe = self.recipe("sft", SftRecipe)
        if recipe.num_iterations != "auto":
            return int(recipe.num_iterations)
        epochs = 1.0 if recipe.epochs == "auto" else float(recipe.epochs)
        files = self.recipes.get("benchmarks")
        own = files.files if isinstance(files, BenchmarksRecipe) else ()
        sizes = {file.name: file.bytes for file in own}
        characters = sum(
            expected_characters(part, sizes.get(part.file, 0)) for part in recipe.mixture.parts
        )
        tokens = characters / self.characters_per_token
        return max(math.ceil(epochs * tokens / self.plan.tokens_per_step), 1)

    def _rl_steps(self) -> int:
        recipe = self.recipe("rl", RlRecipe)
        once = max(recipe.problems // recipe.questions_per_step, 1)
        return once if recipe.num_iterations == "auto" else int(recipe.num_iterations)

    @cached_property
    def reply_tokens(self) -> int:
        """Tokens of a rollout, about."""
        recipe = self.recipe("rl", RlRecipe)
        return min(REPLY_TOKENS[recipe.task], recipe.max_new_tokens)

    @cached_property
    def looked_at_tokens(self) -> float:
        """Tokens of one val/bpb while pretraining."""
        return min(self.validation_tokens, TrainingLooks().validation_tokens)

    @cached_property
    def base_eval_tokens(self) -> float:
        """Tokens that base_eval passes through the model."""
        recipe = self.recipe("base_eval", BaseEvalRecipe)
        examples = min(TASK_EXAMPLES, 3 * recipe.max_per_task or TASK_EXAMPLES)
        scored = min(self.validation_tokens, recipe.validation_tokens)
        return scored + examples * EXAMPLE_TOKENS

    def questions(self, station: str) -> dict[str, int]:
        """Benchmark -> problems that are put to a chat model."""
        recipe = self.recipe(station, ChatEvalRecipe)
        asked: dict[str, int] = {}
        for name in recipe.benchmarks:
            limit = recipe.count(name)
            rows = OFFICIAL_TEST_ROWS.get(name)
            asked[name] = min(n for n in (limit, rows) if n is not None)
        return asked

    @cached_property
    def benchmark_bytes(self) -> int:
        """Size of the files of official benchmarks."""
        recipe = self.recipes.get("benchmarks")
        files = recipe.files if isinstance(recipe, BenchmarksRecipe) else ()
        return sum(file.bytes for file in files)


def _installed(source: HarvestSource) -> int:
    return sum(version != "absent" for version in source.versions.values())


def _characters_of(source: HarvestSource | FilesSource | HubSource | MixtureSource) -> float:
    """Characters of a source, about: of a mixture until the first part runs out."""
    if isinstance(source, HarvestSource):
        return STANDARD_LIBRARY_CHARACTERS + DISTRIBUTION_CHARACTERS * _installed(source)
    if isinstance(source, MixtureSource):
        total = sum(part.weight for part in source.parts)
        return min(
            _characters_of(part.source) * part.max_epochs * total / part.weight
            for part in source.parts
        )
    found = float(sum(file.bytes for file in source.files))
    # Published shards are compressed.
    return found * CHARACTERS_PER_BYTE if isinstance(source, HubSource) else found
