"""Parameters, FLOPs and memory of a model in closed form (torch-free): RECIPE sections 1 and 2."""

from typing import Literal

from nanochat_core.config.base import Config
from nanochat_core.model.config import (
    MLP_FACTOR,
    SMEAR_CHANNELS,
    VALUE_GATE_CHANNELS,
    ModelConfig,
)

Numbers = Literal["float32", "bfloat16", "float16"]
"""What activations are computed in."""
NUMBER_BYTES: dict[Numbers, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
MASTER_BYTES = 4

KEPT_WIDTHS, KEPT_KV_WIDTHS = 16.0, 3.5
"""What a block keeps of a token for backward, in numbers per channel of the model and of its keys:
measured on the tensors that the model saves, compiled and in float32. Eight are the MLP's."""
KEPT_WIDTHS_EAGER, KEPT_KV_WIDTHS_EAGER = 19.0, 4.5
"""The same in 16 bits without a compiler, which keeps float32 copies of what is normed."""
KEPT_OUTSIDE_WIDTHS = 6.0
"""Embeddings, smear, backout and the last norm."""
BACKWARD_WIDTHS = 10.0
"""Gradients of activations that are alive together, most of them in an MLP."""
HEAD_CHUNK_ELEMENTS = 2**26
"""Logits that exist at a time, in a few float32 copies."""
HEAD_COPIES = 3


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


class TrainingMemory(Config):
    """Bytes that training takes on one rank, about; what is measured decides."""

    weights: int
    moments: int
    gradient: int
    """One copy; a step of several passes holds more of them."""
    working: int
    """Weights in the dtype of activations, and the gradient that the head makes early."""
    row: int
    """Activations of one row."""
    row_logits: int
    """Logits of one row, a number and not bytes."""

    @property
    def static(self) -> int:
        """What is there between steps."""
        return self.weights + self.moments

    def peak(self, rows: int, passes: int) -> int:
        """The most that is alive at once in a step of `passes` micro-batches of `rows` rows."""
        logits = min(HEAD_CHUNK_ELEMENTS, rows * self.row_logits)
        head = HEAD_COPIES * MASTER_BYTES * logits
        gradients = gradient_copies(passes) * self.gradient
        return self.static + gradients + self.working + head + rows * self.row


def gradient_copies(passes: int) -> int:
    """Copies of the gradient alive at once when a step of so many micro-batches is summed.

    The sum is a binary counter of partial sums, one for each digit 1, beside the newest gradient.
    """
    return passes.bit_length()


def training_memory(
    config: ModelConfig,
    *,
    numbers: Numbers,
    ranks: int = 1,
    compiled: bool = True,
    activation_checkpointing: bool = False,
) -> TrainingMemory:
    """Weights, moments (shared out among ranks), gradients and activations of `GPT(config)`."""
    counts, size = parameter_counts(config), NUMBER_BYTES[numbers]
    tables = counts.wte + counts.value_embeddings
    matrices = counts.total - tables
    # float16 has too little range for tables: they stay float32.
    weights = MASTER_BYTES * matrices + (2 if numbers == "bfloat16" else 4) * tables
    # AdamW keeps two float32 moments of a number, Muon one (and one of a row or column).
    moments = MASTER_BYTES * (2 * (counts.total - counts.blocks) + counts.blocks)
    copies = 0 if size == MASTER_BYTES else size * matrices
    widths = _kept_widths(config, compiled or size == MASTER_BYTES, activation_checkpointing)
    return TrainingMemory(
        weights=weights,
        moments=-(-moments // ranks),
        gradient=weights,
        working=copies + MASTER_BYTES * counts.lm_head,
        row=int(config.sequence_len * size * widths),
        row_logits=config.sequence_len * config.vocab_size,
    )


def _kept_widths(config: ModelConfig, fused: bool, activation_checkpointing: bool) -> float:
    """Numbers kept for each token until backward has used them."""
    widths, kv_widths = KEPT_WIDTHS, KEPT_KV_WIDTHS
    if not fused:
        widths, kv_widths = KEPT_WIDTHS_EAGER, KEPT_KV_WIDTHS_EAGER
    block = widths * config.n_embd + kv_widths * config.kv_dim
    outside = (KEPT_OUTSIDE_WIDTHS + BACKWARD_WIDTHS) * config.n_embd
    if activation_checkpointing:
        # What goes into every block, and one block at a time.
        return outside + config.n_layer * (config.n_embd + config.kv_dim) + block
    return outside + config.n_layer * block
