"""What decides a tokenizer (torch-free): RECIPE section 3."""

from pydantic import Field, field_validator

from nanochat_core.config.base import Recipe
from nanochat_core.tokenizer.split_patterns import NANOCHAT, split_pattern_of

SPLIT_PATTERN = NANOCHAT


class TokenizerRecipe(Recipe):
    """Byte-level BPE; `vocab_size` includes the nine special tokens."""

    vocab_size: int = Field(32768, ge=256 + 9)
    split_pattern: str = Field(
        SPLIT_PATTERN, description="a regular expression, or the name of one: split_patterns.py"
    )
    max_document_characters: int = Field(10_000, ge=1, description="longer ones are cut")
    max_characters: int = Field(2_000_000_000, ge=1, description="read in all, then stop")

    @field_validator("split_pattern")
    @classmethod
    def _by_name(cls, given: str) -> str:
        """A name stands for its pattern: what is hashed is the pattern."""
        return split_pattern_of(given)
