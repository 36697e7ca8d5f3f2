"""Real models in miniature whose every part does something, and their exports, loaded."""

from pathlib import Path
from typing import Any

import torch

from nanochat_core.export.comparing import load_exported
from nanochat_core.export.folder import write_model
from nanochat_core.export.recipe import ExportDtype
from nanochat_core.inference.loading import save_model
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer
from tests.inference.scripted import byte_tokenizer

SHAPE = {
    "sequence_len": 256,
    "n_layer": 3,
    "n_head": 4,
    "n_kv_head": 2,
    "n_embd": 64,
    "window_pattern": "SL",
}
"""Windows of 128 and 256 keys, grouped key heads, value embeddings, 55 padding columns."""


def lively_model(
    seed: int = 0, compute_dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[GPT, Tokenizer]:
    """A model that nothing was left at zero of, and a tokenizer of bytes."""
    tokenizer = byte_tokenizer()
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **{**SHAPE, **changes})
    model = GPT(config, compute_dtype)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if name == "lm_head.weight" else 1.0 if "gate" in name else 0.1
            if "lambda" not in name:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
        model.smear_lambda.fill_(0.7)
    return model.eval(), tokenizer


def write_export(
    model: GPT, tokenizer: Tokenizer, root: Path, dtype: ExportDtype = "float32"
) -> Path:
    """The model's half of an exported folder."""
    save_model(model, root / "ours", {"tokenizer": tokenizer.identity})
    folder = root / "export"
    folder.mkdir()
    write_model(root / "ours", tokenizer, folder, dtype)
    return folder


def exported(model: GPT, tokenizer: Tokenizer, root: Path) -> Any:
    """The model as transformers loads it."""
    return load_exported(write_export(model, tokenizer, root), "cpu")


def some_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Bytes (rows, length)."""
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))
