"""Model folders: `model.safetensors` and `config.json`, written and read."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanochat_core.errors import CheckpointError, ConfigError
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def save_model(model: GPT, folder: Path, config: dict[str, Any]) -> list[str]:
    """Write weights and config, and return the names of the two files.

    `config["model"]` is set to the model's own; equal weights and config make equal bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu").contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, str(folder / WEIGHTS_FILE))
    whole = {**config, "model": model.config.model_dump(mode="json")}
    text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8", newline="\n")
    return [WEIGHTS_FILE, CONFIG_FILE]


def load_model(
    folder: Path, device: torch.device | str, compute_dtype: torch.dtype
) -> tuple[GPT, dict[str, Any]]:
    """The model of a folder, on `device` and ready to train or to answer, and its config.json.

    Raises CheckpointError when a file is missing or broken, or the weights are of another shape.
    """
    config, shape = read_config(folder)
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as weights ({error}); {_REMEDY}") from error
    with torch.device(device):
        model = GPT(shape, compute_dtype)
    _check_tensors(path, tensors, model)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(tensors[name])
    return model, config


def load_pair(
    folder: Path, tokenizer_folder: Path, device: torch.device | str, compute_dtype: torch.dtype
) -> tuple[GPT, dict[str, Any], Tokenizer]:
    """`load_model` and its tokenizer, after a check that the two belong together.

    Raises CheckpointError, before weights are read, when the model was trained with another
    tokenizer; DataError when the tokenizer cannot be read.
    """
    tokenizer = Tokenizer.load(tokenizer_folder)
    config, shape = read_config(folder)
    # A folder made by hand may not say which tokenizer it needs; then the size has to do.
    wanted = config.get("tokenizer", tokenizer.identity)
    if wanted != tokenizer.identity or shape.vocab_size != tokenizer.vocab_size:
        raise CheckpointError(
            f"{folder} was trained with the tokenizer {str(wanted)[:8]} of {shape.vocab_size:,} "
            f"tokens, but {tokenizer_folder} is {tokenizer.identity[:8]} of "
            f"{tokenizer.vocab_size:,}; give the tokenizer that the model was trained with"
        )
    return *load_model(folder, device, compute_dtype), tokenizer


def read_config(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """config.json of a model folder, and the shape of the model in it; CheckpointError."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_bytes())
        return config, ModelConfig.model_validate(config["model"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError, ConfigError) as error:
        raise CheckpointError(
            f"{path} cannot be read as the description of a model "
            f"({type(error).__name__}: {error}); {_REMEDY}"
        ) from error


_REMEDY = "give a folder with model.safetensors and config.json as pretrain or sft publish them"


def _check_tensors(path: Path, tensors: dict[str, torch.Tensor], model: GPT) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - given.keys())]
    problems += [f"{name} is unknown" for name in sorted(given.keys() - wanted.keys())]
    problems += [
        f"{name} is {given[name]}, expected {wanted[name]}"
        for name in sorted(wanted.keys() & given.keys())
        if given[name] != wanted[name]
    ]
    if problems:
        shown = "; ".join(problems[:5])
        raise CheckpointError(
            f"{path} does not fit the config.json beside it: {shown}"
            f"{f' and {len(problems) - 5} more' if len(problems) > 5 else ''}; "
            "the two files are of different models: make the model again"
        )
