"""Model folders: what was saved comes back, and what does not fit is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat_core.errors import CheckpointError
from nanochat_core.inference import CheckpointManager, InferenceEngine
from nanochat_core.inference.loading import CONFIG_FILE, WEIGHTS_FILE, load_model, save_model
from tests.inference.scripted import bigram_model, byte_tokenizer, chain
from tests.model.builders import random_model, random_tokens, small_config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_saved_model_comes_back_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_model(small_config(), dtype=dtype)
    names = save_model(model, tmp_path, {"training": {"depth": 2}})
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    loaded, config = load_model(tmp_path, "cpu", dtype)
    assert config["training"] == {"depth": 2}
    assert loaded.config == model.config
    assert not [p for p in loaded.parameters() if p.device.type != "cpu"]
    tokens = random_tokens(model.config, 1, 12)
    with torch.no_grad():
        assert torch.equal(model(tokens), loaded(tokens))


def test_equal_models_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(random_model(small_config()), tmp_path / name, {"b": 1, "a": 2})
    for file in (WEIGHTS_FILE, CONFIG_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def break_weights(folder: Path) -> None:
    tensors = load_file(str(folder / WEIGHTS_FILE))
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].contiguous()
    del tensors["wte.weight"]
    save_file(tensors, str(folder / WEIGHTS_FILE))


def break_config(folder: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["model"]["n_head"] = 3
    (folder / CONFIG_FILE).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), "cannot be read as weights"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"short"), "cannot be read as weights"),
        (lambda folder: (folder / CONFIG_FILE).unlink(), "description of a model"),
        (lambda folder: (folder / CONFIG_FILE).write_text("[]"), "description of a model"),
        (break_config, "multiple of n_head"),
        (break_weights, "wte.weight is missing; lm_head.weight is .* expected"),
    ],
    ids=["no weights", "short weights", "no config", "empty config", "bad config", "other shape"],
)
def test_what_is_no_model_is_refused(tmp_path: Path, damage, words: str) -> None:  # noqa: ANN001
    save_model(random_model(small_config()), tmp_path, {})
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path, "cpu", torch.float32)


def test_a_folder_becomes_an_engine_with_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    save_model(bigram_model(tokenizer, chain(tokenizer, "?", "o", "k")), tmp_path, {})
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        CheckpointManager(tmp_path).load()
    tokenizer.save(tmp_path / "tokenizer")
    model, config = CheckpointManager(tmp_path, device="cpu").load()
    assert config["model"]["n_layer"] == 1
    assert InferenceEngine(model).generate(prompt="?", max_new_tokens=2, temperature=0.0) == "ok"
