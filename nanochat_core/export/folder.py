"""The model's half of an exported folder: weights, configs and the code that runs them."""

import json
import shutil
from pathlib import Path
from typing import Any

from nanochat_core.export.recipe import ExportDtype
from nanochat_core.export.weights import generation_config, hub_config, write_weights
from nanochat_core.inference.loading import CONFIG_FILE, read_config
from nanochat_core.sandbox import calculator
from nanochat_core.tokenizer.tokenizer import Tokenizer

CODE_FOLDER = Path(__file__).parent / "hub_model"
CODE_FILES = (
    "configuration_nanochat.py",
    "columns_nanochat.py",
    "answers_nanochat.py",
    "modeling_nanochat.py",
)
CALCULATOR_FILE = "calculator_nanochat.py"
"""The calculator as our engine has it: an export needs nothing of nanochat."""
GENERATION_FILE = "generation_config.json"


def write_model(
    model_folder: Path, tokenizer: Tokenizer, folder: Path, dtype: ExportDtype
) -> list[str]:
    """Write what `AutoModelForCausalLM` loads; returns the names of the files.

    Raises CheckpointError when the model cannot be read.
    """
    _, shape = read_config(model_folder)
    _write_json(folder / CONFIG_FILE, hub_config(shape, tokenizer, dtype))
    _write_json(folder / GENERATION_FILE, generation_config(tokenizer))
    for name in CODE_FILES:
        shutil.copyfile(CODE_FOLDER / name, folder / name)
    shutil.copyfile(calculator.__file__, folder / CALCULATOR_FILE)
    weights = write_weights(model_folder, folder, dtype)
    return [CONFIG_FILE, GENERATION_FILE, *CODE_FILES, CALCULATOR_FILE, weights]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
