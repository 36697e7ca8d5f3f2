"""The shape of a model (torch-free): RECIPE section 1."""

import math
from functools import cached_property

from pydantic import Field, model_validator

from nanochat_core.config.base import Config
from nanochat_core.errors import ConfigError

VOCAB_MULTIPLE = 64
"""Embedding, value embeddings and head are padded up to a multiple of this."""
WINDOW_MULTIPLE = 128
MLP_FACTOR = 4
SMEAR_CHANNELS = 24
"""Channels that decide how much of the token before is mixed in."""
VALUE_GATE_CHANNELS = 12
"""Channels that decide how much of the value embedding is mixed in."""


class ModelConfig(Config):
    """Sizes of one decoder-only Transformer; block indices are zero-based everywhere."""

    sequence_len: int = Field(2048, ge=2)
    vocab_size: int = Field(32768, ge=2)
    n_layer: int = Field(ge=1)
    n_head: int = Field(ge=1)
    n_kv_head: int = Field(ge=1)
    n_embd: int = Field(ge=1)
    window_pattern: str = Field("SSSL", pattern=r"^[SL]+$")

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        if self.n_head % self.n_kv_head:
            raise ConfigError(
                f"n_head={self.n_head} is not a multiple of n_kv_head={self.n_kv_head}; "
                "set pretrain.n_kv_head to auto or to a divisor of n_head"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"head_dim={self.head_dim} is odd; rotary embeddings need pairs, so set "
                f"pretrain.head_dim to {self.head_dim + 1}"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.n_embd // self.n_head

    @property
    def kv_dim(self) -> int:
        """Channels of all key (or value) heads together."""
        return self.n_kv_head * self.head_dim

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding tables and of the head."""
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """Keys before the query that each block sees; the last block always sees them all."""
        short = math.ceil(self.sequence_len / 4 / WINDOW_MULTIPLE) * WINDOW_MULTIPLE
        sizes = {"L": self.sequence_len, "S": short}
        letters = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.n_layer)]
        letters[-1] = "L"
        return tuple(sizes[letter] for letter in letters)

    def has_value_embedding(self, block: int) -> bool:
        """Whether a block owns a value embedding table (ResFormer, arXiv:2410.17897)."""
        return block % 2 == (self.n_layer - 1) % 2
