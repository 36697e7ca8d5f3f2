"""The default recipes hash to what they hashed to: a changed number makes other artifacts."""

import hashlib

import pytest

from nanochat_core.artifacts.canonical import canonical_json
from nanochat_core.config.base import Recipe
from nanochat_core.data.recipes import FilesSource, HarvestSource, ShardsRecipe, TokensRecipe
from nanochat_core.evals.recipes import BaseEvalRecipe, ChatEvalRecipe
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.training.recipes import PretrainRecipe, RlRecipe, SftRecipe

GOLDEN: dict[str, tuple[Recipe, str]] = {
    "harvest": (
        ShardsRecipe(source=HarvestSource(versions={"a": "1"}, python="3.11")),
        "48d31b98a5a9387b",
    ),
    "files": (ShardsRecipe(source=FilesSource(files=())), "ce1f882bff67e50a"),
    "tokenizer": (TokenizerRecipe(), "11bc8ca20fa2a71f"),
    "tokens": (TokensRecipe(), "44136fa355b3678a"),
    "pretrain": (PretrainRecipe(), "62a9407d4f7a7505"),
    "base_eval": (BaseEvalRecipe(), "a11979ba809098b0"),
    "sft": (SftRecipe(), "e476e75618194480"),
    "rl": (RlRecipe(), "7a51cb1151c3ad6c"),
    "chat_eval_sft": (ChatEvalRecipe(), "56597df6169a4a1f"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_default_recipe_keeps_its_hash(name: str) -> None:
    recipe, expected = GOLDEN[name]
    digest = hashlib.sha256(canonical_json(recipe.model_dump(mode="json"))).hexdigest()
    assert digest[:16] == expected, "raise CODE_VERSION or say in CHANGELOG.md what changed"
