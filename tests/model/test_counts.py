"""Closed forms against the real model, which is built without memory."""

import pytest
import torch

from nanochat_core.model.config import ModelConfig
from nanochat_core.model.counts import flops_per_token, parameter_counts
from nanochat_core.model.gpt import GPT
from nanochat_core.model.layers import Linear

CONFIGS = {
    **{
        f"d{d}": {"n_layer": d, "n_head": -(-d // 2), "n_embd": -(-d // 2) * 128}
        for d in range(2, 27)
    },
    "grouped": {"n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 256},
    "narrow": {"n_layer": 2, "n_head": 1, "n_embd": 32, "sequence_len": 64, "vocab_size": 500},
    "all long": {"n_layer": 6, "n_head": 6, "n_embd": 384, "window_pattern": "L"},
}


def build(name: str) -> ModelConfig:
    values = CONFIGS[name]
    return ModelConfig(**{"n_kv_head": values["n_head"], **values})


def meta_model(config: ModelConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_equal_those_of_the_real_model(name: str) -> None:
    config = build(name)
    sizes = {n: p.numel() for n, p in meta_model(config).named_parameters()}
    counts = parameter_counts(config)
    assert counts.total == sum(sizes.values())
    assert counts.wte == sizes["wte.weight"]
    assert counts.lm_head == sizes["lm_head.weight"]
    assert counts.blocks == sum(v for n, v in sizes.items() if n.startswith("blocks."))
    assert counts.value_embeddings == sum(
        v for n, v in sizes.items() if n.startswith("value_embeddings.")
    )
    assert counts.scaling == counts.blocks + counts.lm_head


@pytest.mark.parametrize("name", CONFIGS)
def test_flops_equal_a_sum_over_linears_and_attention(name: str) -> None:
    config = build(name)
    model = meta_model(config)
    linears = sum(m.weight.numel() for m in model.modules() if isinstance(m, Linear))
    attention = sum(
        12 * block.attn.q.weight.size(0) * min(block.attn.window, config.sequence_len)
        for block in model.blocks
    )
    assert flops_per_token(config) == 6 * linears + attention
