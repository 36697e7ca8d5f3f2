"""Small real things for the tests: a trained tokenizer, a random model, bundles on disk."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer

TEXT = (
    "The sky is blue and the sea is green. A big dog was old, but the cat was young. "
    "Answer: yes or no? The sun is hot; questions have answers. What is the name of it? "
)
WORDS = (
    "sky",
    "sea",
    "sun",
    "dog",
    "cat",
    "old",
    "young",
    "blue",
    "green",
    "name",
    "answer",
    "hot",
    "is",
)


@cache
def make_tokenizer(text: str = TEXT) -> Tokenizer:
    return Tokenizer.train([text * 5], TokenizerRecipe(vocab_size=280))


def make_model(seed: int = 0, sequence_len: int = 64, vocab_size: int = 280) -> GPT:
    """Random weights that are far from uniform, so that options differ."""
    config = ModelConfig(
        sequence_len=sequence_len,
        vocab_size=vocab_size,
        n_layer=2,
        n_head=2,
        n_kv_head=2,
        n_embd=32,
        window_pattern="SL",
    )
    model = GPT(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.dtype), alpha=0.3)
    return model


def write_bundle(folder: Path, tasks: list[dict[str, Any]]) -> None:
    """`tasks`: entries of core.yaml, each with its `rows` and perhaps a `baseline` in percent."""
    entries, lines = [], ["Eval Task,Task Category,Random baseline,Description"]
    for task in tasks:
        entry = {"dataset_uri": f"some/{task['label']}.jsonl", "num_fewshot": [0], **task}
        rows, baseline = entry.pop("rows"), entry.pop("baseline", 25)
        path = folder / "eval_data" / "some" / f"{task['label']}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        entries.append(entry)
        lines.append(f'{task["label"]},any,{baseline},"some, text\nin two lines"')
    # JSON is YAML.
    (folder / "core.yaml").write_text(json.dumps({"icl_tasks": entries}), encoding="utf-8")
    (folder / "eval_meta_data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def choice_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "query": f"The {WORDS[i % 13]} is",
            "choices": [WORDS[(i * k + k) % 13] + " it" * (k % 3) for k in range(1, 4 + i % 2)],
            "gold": i % 3,
        }
        for i in range(count)
    ]


def make_batches(
    num_rows: int = 6, length: int = 24, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    tokenizer = make_tokenizer()
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.integers(0, tokenizer.vocab_size, (num_rows, length + 1)))
    tokens[::2, 5] = tokenizer.bos_id
    targets = tokens[:, 1:].clone()
    targets[1, -7:] = -1
    return tokens[:, :-1], targets
