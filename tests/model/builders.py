"""Small models with every parameter random: many are zero at the start, which hides mistakes."""

import torch

from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT


def small_config(**changes) -> ModelConfig:
    values = {
        "sequence_len": 160,
        "vocab_size": 70,
        "n_layer": 2,
        "n_head": 2,
        "n_kv_head": 2,
        "n_embd": 32,
        "window_pattern": "SSSL",
    }
    return ModelConfig(**{**values, **changes})


def random_model(config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> GPT:
    model = GPT(config, dtype)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.add_(noise.to(parameter.dtype))
    return model


def random_tokens(config: ModelConfig, rows: int, length: int, *, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (rows, length), generator=generator)
