"""Weights and config of an export: the tensors and names of ours, described for transformers."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanochat_core.errors import CheckpointError
from nanochat_core.export.recipe import ExportDtype
from nanochat_core.inference.loading import WEIGHTS_FILE
from nanochat_core.model.attention import QK_SCALE, VALUE_GATE_SCALE
from nanochat_core.model.config import (
    MLP_FACTOR,
    SMEAR_CHANNELS,
    VALUE_GATE_CHANNELS,
    ModelConfig,
)
from nanochat_core.model.gpt import GPT
from nanochat_core.model.layers import NORM_EPS
from nanochat_core.model.loss import LOGIT_CAP
from nanochat_core.model.rotary import MAX_LENGTH_FACTOR, ROTARY_BASE
from nanochat_core.tokenizer.tokenizer import Tokenizer

MODEL_TYPE = "nanochat_flows"
"""transformers has a `nanochat`, of an older architecture."""


def hub_config(shape: ModelConfig, tokenizer: Tokenizer, dtype: ExportDtype) -> dict[str, Any]:
    """config.json of the export: every size and constant that the modelling file reads."""
    return {
        "architectures": ["NanochatForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_nanochat.NanochatConfig",
            "AutoModelForCausalLM": "modeling_nanochat.NanochatForCausalLM",
        },
        "model_type": MODEL_TYPE,
        "dtype": dtype,
        "vocab_size": shape.vocab_size,
        "padded_vocab_size": shape.padded_vocab_size,
        "hidden_size": shape.n_embd,
        "intermediate_size": MLP_FACTOR * shape.n_embd,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_kv_head,
        "head_dim": shape.head_dim,
        "sequence_len": shape.sequence_len,
        "max_position_embeddings": MAX_LENGTH_FACTOR * shape.sequence_len,
        "windows": list(shape.windows),
        "value_embedding_layers": [
            layer for layer in range(shape.n_layer) if shape.has_value_embedding(layer)
        ],
        "backout_layer": shape.n_layer // 2,
        "smear_channels": min(SMEAR_CHANNELS, shape.n_embd),
        "value_gate_channels": min(VALUE_GATE_CHANNELS, shape.n_embd),
        "value_gate_scale": VALUE_GATE_SCALE,
        "qk_scale": QK_SCALE,
        "rope_theta": ROTARY_BASE,
        "rms_norm_eps": NORM_EPS,
        "logit_cap": LOGIT_CAP,
        "tie_word_embeddings": False,
        "use_cache": True,
        **special_ids(tokenizer),
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json: greedy, and it ends where our engine does.

    It does not limit the length: evaluation harnesses give a limit of another kind, over which one
    from here would win.
    """
    ids = special_ids(tokenizer)
    return {**ids, "eos_token_id": [ids["eos_token_id"], ids["bos_token_id"]], "do_sample": False}


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The tokens that transformers knows by name; padding is hidden, so any token would do."""
    end = tokenizer.special_id("assistant_end")
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": end, "pad_token_id": end}


def write_weights(model_folder: Path, folder: Path, dtype: ExportDtype) -> str:
    """Copy the tensors of a model folder, as they are or rounded; returns the file's name."""
    path = model_folder / WEIGHTS_FILE
    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as weights ({error}); give a folder with model.safetensors and "
            "config.json as pretrain or sft publish them"
        ) from error
    if dtype == "bfloat16":
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    # Older releases of transformers refuse a file that does not say which framework wrote it.
    save_file(tensors, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    return WEIGHTS_FILE


def round_like(model: GPT, dtype: ExportDtype) -> None:
    """Give our model the numbers that the export has, in the dtype that it computes in."""
    if dtype == "float32":
        return
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
