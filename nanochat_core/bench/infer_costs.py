"""What answering must read and multiply at least, in closed form (torch-free).

Scores of attention count within the windows alone, and weights once a step, however many rows.
"""

from statistics import fmean

from nanochat_core.model.config import ModelConfig
from nanochat_core.model.counts import parameter_counts


def weight_bytes(config: ModelConfig, itemsize: int) -> int:
    """Of every matrix that a step reads whole: blocks, smear gate and head; no table."""
    return itemsize * _matrices(config)


def cache_bytes(config: ModelConfig, itemsize: int, length: int) -> int:
    """Keys and values that the last of `length` tokens sees, its own included."""
    return 2 * config.kv_dim * itemsize * sum(_reach(config, length))


def decode_bytes(config: ModelConfig, itemsize: int, *, batch: int, prompt: int, new: int) -> float:
    """Bytes read by one step of `batch` rows, as a mean over the `new` tokens after a prompt."""
    tables = sum(config.has_value_embedding(i) for i in range(config.n_layer))
    looked_up = itemsize * (config.n_embd + tables * config.kv_dim)
    cached = fmean(cache_bytes(config, itemsize, length) for length in _lengths(prompt, new))
    return weight_bytes(config, itemsize) + batch * (cached + looked_up)


def decode_flops(config: ModelConfig, *, prompt: int, new: int) -> float:
    """FLOPs of one token, as a mean over the `new` tokens after a prompt."""
    scores = fmean(_score_flops(config, length) for length in _lengths(prompt, new))
    return 2 * _matrices(config) + scores


def prefill_flops(config: ModelConfig, prompt: int) -> int:
    """FLOPs of reading a prompt; the head is asked about its last token alone."""
    head = config.vocab_size * config.n_embd
    scores = sum(_score_flops(config, length) for length in range(1, prompt + 1))
    return 2 * (_matrices(config) - head) * prompt + 2 * head + scores


def _matrices(config: ModelConfig) -> int:
    counts = parameter_counts(config)
    return counts.blocks + counts.smear_gate + config.vocab_size * config.n_embd


def _lengths(prompt: int, new: int) -> range:
    """Tokens there are when each new one is made but the first, which the prompt gives."""
    return range(prompt + 1, prompt + max(new, 2))


def _score_flops(config: ModelConfig, length: int) -> int:
    """Of the last token with every key in reach, and of the values that they weigh."""
    return 4 * config.n_head * config.head_dim * sum(_reach(config, length))


def _reach(config: ModelConfig, length: int) -> list[int]:
    return [min(window + 1, length) for window in config.windows]
