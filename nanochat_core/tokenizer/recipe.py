"""What decides a tokenizer (torch-free): RECIPE section 3."""

from pydantic import Field

from nanochat_core.config.base import Recipe

SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""Digits in groups of at most two: measured better than one or three at 32,768 (RECIPE 3)."""


class TokenizerRecipe(Recipe):
    """Byte-level BPE; `vocab_size` includes the nine special tokens."""

    vocab_size: int = Field(32768, ge=256 + 9)
    split_pattern: str = SPLIT_PATTERN
    max_document_characters: int = Field(10_000, ge=1, description="longer ones are cut")
    max_characters: int = Field(2_000_000_000, ge=1, description="read in all, then stop")
