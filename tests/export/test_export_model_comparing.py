"""An export that is not the model is noticed before anybody can use it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from export_tools import exported, lively_model, write_export
from safetensors.torch import load_file, save_file

from nanochat_core.errors import ExportError
from nanochat_core.export.comparing import (
    BATCH_LOGITS,
    NEW_TOKENS,
    TOLERANCE,
    Comparison,
    batches,
    compare_models,
    count_near_ties,
    load_exported,
    logit_difference,
    make_prompts,
)
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("code_cache")

NUM_PROMPTS = 8
Pair = tuple[GPT, Tokenizer, Path]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Our model, its tokenizer, and the folder of the export."""
    model, tokenizer = lively_model()
    return model, tokenizer, write_export(model, tokenizer, tmp_path)


def compared(pair: Pair, seen: list[int] | None = None) -> Comparison:
    model, tokenizer, folder = pair
    prompts = make_prompts(tokenizer, model.config, NUM_PROMPTS)
    done = [] if seen is None else seen
    return compare_models(
        model, load_exported(folder, "cpu"), prompts, lambda count, _: done.append(count)
    )


def change_code(folder: Path, old: str, new: str) -> None:
    path = folder / "columns_nanochat.py"
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is there once"
    path.write_text(text.replace(old, new))
    # A process that knows the config's class would not read the other file again.
    with (folder / "configuration_nanochat.py").open("a") as file:
        file.write(f"# {new}\n")


def test_an_export_agrees_with_its_model(pair: Pair) -> None:
    seen: list[int] = []
    found = compared(pair, seen)
    assert found.largest_difference < TOLERANCE / 10
    assert (found.near_ties, found.num_tokens) == (0, NUM_PROMPTS * NEW_TOKENS)
    assert seen[-1] == NUM_PROMPTS


def test_one_changed_weight_is_noticed(pair: Pair) -> None:
    path = pair[2] / "model.safetensors"
    tensors = load_file(path)
    tensors["blocks.1.attn.q.weight"][0, 0] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"logits are not ours: after .* differ by .* 0.0001"):
        compared(pair)


def test_a_weight_that_is_no_number_is_noticed(pair: Pair) -> None:
    path = pair[2] / "model.safetensors"
    tensors = load_file(path)
    tensors["blocks.2.mlp.fc.weight"][3, 3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ExportError, match="differ by nan"):
        compared(pair)


def test_a_cache_that_forgets_the_token_before_is_noticed(pair: Pair) -> None:
    # Logits of a whole prompt are right all the same.
    change_code(pair[2], "before_BT >= 0", "(before_BT >= 0) & (self.start == 0)")
    with pytest.raises(ExportError, match="generates other tokens than ours: token 2 after"):
        compared(pair)


def test_a_window_that_is_too_wide_is_noticed_by_the_longest_prompts(pair: Pair) -> None:
    path = pair[2] / "config.json"
    config = json.loads(path.read_text())
    config["windows"] = [window + 1 for window in config["windows"]]
    path.write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"logits are not ours: after 1[3-9][0-9] tokens"):
        compared(pair)


@pytest.mark.parametrize("kind", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_the_code_are_refused(pair: Pair, kind: str) -> None:
    path = pair[2] / "model.safetensors"
    tensors = load_file(path)
    if kind == "missing":
        del tensors["smear_gate.weight"]
    elif kind == "unknown":
        tensors["bias"] = torch.zeros(3)
    else:
        tensors["smear_gate.weight"] = torch.zeros(1, 7)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"smear_gate|bias|cannot load"):
        load_exported(pair[2], "cpu")


def test_tokens_that_are_nearly_as_likely_count_as_near_ties() -> None:
    model, tokenizer = lively_model()
    prompts = make_prompts(tokenizer, model.config, 4)
    best_B1 = torch.tensor([[int(model(torch.tensor([p]))[0, -1].argmax())] for p in prompts])
    assert count_near_ties(model, prompts, best_B1) == 0
    # Each likeliest token gets a rival, which is behind by a rounding or so.
    for best in best_B1.flatten().tolist():
        model.lm_head.weight[best + 1 - 2 * (best % 2)] = model.lm_head.weight[best] * 0.999999
    rivals_B1 = best_B1 + 1 - 2 * (best_B1 % 2)
    assert count_near_ties(model, prompts, best_B1) == 0
    assert count_near_ties(model, prompts, rivals_B1) == len(prompts)
    model.lm_head.weight[rivals_B1.flatten()] *= 0.99
    with pytest.raises(ExportError, match=r"token 1 after a prompt of \d+ is \d+, ours is \d+"):
        count_near_ties(model, prompts, rivals_B1)


def test_prompts_reach_beyond_the_windows_and_are_the_same_each_time() -> None:
    model, tokenizer = lively_model()
    prompts = make_prompts(tokenizer, model.config, 100)
    lengths = [len(prompt) for prompt in prompts]
    assert lengths == sorted(lengths)
    assert lengths[0] == 1
    assert lengths[-1] > model.config.sequence_len
    assert sum(length > min(model.windows) for length in lengths) >= 10
    assert {prompt[0] for prompt in prompts} == {tokenizer.bos_id}
    assert {prompt[-1] for prompt in prompts[3::2]} == {tokenizer.special_id("assistant_start")}
    assert prompts == make_prompts(tokenizer, model.config, 100)
    assert prompts != make_prompts(tokenizer, model.config, 100, seed=1)


def test_batches_hold_every_prompt_once_and_fit_the_memory() -> None:
    prompts = [[0] * length for length in (5, 900, 1, 3, 2_000, 40)]
    vocab_size = 32_768
    found = list(batches(prompts, vocab_size))
    assert [len(p) for batch in found for p in batch] == [1, 3, 5, 40, 900, 2_000]
    assert all(
        len(batch) == 1
        or len(batch) * (max(map(len, batch)) + NEW_TOKENS) * vocab_size <= BATCH_LOGITS
        for batch in found
    )


def test_logits_of_another_vocabulary_are_refused(pair: Pair, tmp_path: Path) -> None:
    model, tokenizer, _ = pair
    theirs: Any = exported(model, tokenizer, tmp_path / "other")
    theirs.config.vocab_size -= 1
    with pytest.raises(ExportError, match=r"\(1, 2, 264\), ours \(1, 2, 265\)"):
        logit_difference(model, theirs, [[1, 2]])
