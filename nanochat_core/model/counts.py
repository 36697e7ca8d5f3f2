"""Parameters and FLOPs of a model in closed form (torch-free): RECIPE sections 1 and 2."""

from nanochat_core.config.base import Config
from nanochat_core.model.config import (
    MLP_FACTOR,
    SMEAR_CHANNELS,
    VALUE_GATE_CHANNELS,
    ModelConfig,
)


class ParameterCounts(Config):
    """Number of parameters by part."""

    wte: int
    value_embeddings: int
    lm_head: int
    blocks: int
    smear_gate: int
    scalars: int

    @property
    def total(self) -> int:
        """Every parameter."""
        return (
            self.wte
            + self.value_embeddings
            + self.lm_head
            + self.blocks
            + self.smear_gate
            + self.scalars
        )

    @property
    def scaling(self) -> int:
        """N of the scaling laws: everything inside the blocks, and the padded head."""
        return self.blocks + self.lm_head


def parameter_counts(config: ModelConfig) -> ParameterCounts:
    """Count the parameters of `GPT(config)` without building it."""
    attention = 2 * config.n_embd * config.n_embd + 2 * config.n_embd * config.kv_dim
    mlp = 2 * MLP_FACTOR * config.n_embd * config.n_embd
    value_gate = min(VALUE_GATE_CHANNELS, config.n_embd) * config.n_kv_head
    num_tables = sum(config.has_value_embedding(i) for i in range(config.n_layer))
    return ParameterCounts(
        wte=config.padded_vocab_size * config.n_embd,
        value_embeddings=num_tables * config.padded_vocab_size * config.kv_dim,
        lm_head=config.padded_vocab_size * config.n_embd,
        blocks=config.n_layer * (attention + mlp) + num_tables * value_gate,
        smear_gate=min(SMEAR_CHANNELS, config.n_embd),
        scalars=2 * config.n_layer + 2,
    )


def flops_per_token(config: ModelConfig) -> int:
    """FLOPs of forward and backward for one token: 6 for each weight of a Linear, 12 for each
    channel of each key in reach (PaLM, arXiv:2204.02311, appendix B; no causal discount).
    """
    counts = parameter_counts(config)
    matrices = counts.blocks + counts.lm_head + counts.smear_gate
    reach = sum(min(window, config.sequence_len) for window in config.windows)
    return 6 * matrices + 12 * config.n_head * config.head_dim * reach
