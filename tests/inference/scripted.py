"""A real model whose weights say which token follows which: blocks silent, embeddings one-hot."""

from itertools import pairwise

import torch

from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.recipe import SPLIT_PATTERN
from nanochat_core.tokenizer.tokenizer import Tokenizer


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the nine specials."""
    return Tokenizer([bytes([i]) for i in range(256)], SPLIT_PATTERN)


def bigram_model(tokenizer: Tokenizer, successors: dict[int, int], **changes) -> GPT:
    """A model that is nearly sure of `successors[token]` after a token, and of bos elsewhere."""
    values = {"sequence_len": 64, "n_layer": 1, "n_head": 1, "n_kv_head": 1, "n_embd": 272}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **{**values, **changes})
    model = GPT(config)
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.resid_lambdas.fill_(1.0)
        model.wte.weight.fill_diagonal_(1.0)
        for token in range(tokenizer.vocab_size):
            model.lm_head.weight[successors.get(token, tokenizer.bos_id), token] = 10.0
    return model


def chain(tokenizer: Tokenizer, *steps: str | int) -> dict[int, int]:
    """Each step follows the one before: one-character texts, or names of specials."""
    ids = [
        step
        if isinstance(step, int)
        else tokenizer.encode(step)[0]
        if len(step) == 1
        else tokenizer.special_id(step)
        for step in steps
    ]
    assert len(set(ids[:-1])) == len(ids) - 1, "a token can have one successor only"
    return dict(pairwise(ids))
