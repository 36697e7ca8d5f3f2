"""The real bundle of NANOCHAT_TEST_DATA, against the plain evaluator.

NANOCHAT_TEST_MODEL may name a base model to ask, as `pretrain folder:tokenizer folder`.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from eval_tools import make_model
from plain_core import accuracy

from nanochat_core.bench.core import differences
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.evals.bundle import Bundle, read_bundle, task_digest
from nanochat_core.evals.core import evaluate_core
from nanochat_core.inference.loading import load_pair
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer

NUM_EXAMPLES = 12
NEAR_TIE = 1e-5
"""Nats; float32 rounds a mean loss to a few times 1e-6 of itself."""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    data = os.environ.get("NANOCHAT_TEST_DATA")
    if not data:
        pytest.skip("NANOCHAT_TEST_DATA is not set: no real evaluation bundle")
    return read_bundle(Path(data) / "core_bundle")


@pytest.fixture(scope="module")
def subject(bundle: Bundle) -> tuple[GPT, Tokenizer]:
    if folders := os.environ.get("NANOCHAT_TEST_MODEL"):
        pretrain, tokenizer_folder = map(Path, folders.split(os.pathsep))
        model, _, tokenizer = load_pair(pretrain, tokenizer_folder, "cpu", torch.float32)
        return model, tokenizer
    text = [task.data_path.read_text(encoding="utf-8") for task in bundle.tasks]
    tokenizer = Tokenizer.train(text, TokenizerRecipe(vocab_size=1024))
    return make_model(sequence_len=256, vocab_size=1024), tokenizer


def test_every_file_of_the_bundle_reads(bundle: Bundle) -> None:
    counts = {task.label: len(task.read_examples()) for task in bundle.tasks}
    assert counts["arc_easy"] == 2376
    assert counts["winograd"] == 273
    assert {task.task_type for task in bundle.tasks} == {
        "multiple_choice", "schema", "language_modeling",
    }  # fmt: skip
    assert len({task_digest(task) for task in bundle.tasks}) == len(bundle.tasks)


def test_every_prediction_is_that_of_the_plain_evaluator(
    bundle: Bundle, subject: tuple[GPT, Tokenizer]
) -> None:
    model, tokenizer = subject
    result = evaluate_core(
        model, tokenizer, bundle, Ranks.single(), max_per_task=NUM_EXAMPLES, batch_tokens=2048
    )
    assert result.metric_name == "demo_score"
    for task in result.tasks:
        rules = task.task
        lines = rules.data_path.read_text(encoding="utf-8").splitlines()
        expected, scores = accuracy(
            model,
            tokenizer,
            rules.task_type,
            [json.loads(line) for line in lines],
            max_per_task=NUM_EXAMPLES,
            num_fewshot=rules.num_fewshot,
            delimiter=rules.delimiter,
            max_tokens=model.max_positions,
        )
        assert len(task.examples) == NUM_EXAMPLES
        for example, plain in zip(task.examples, scores, strict=True):
            assert example.scores == pytest.approx(plain, rel=1e-4)
        differing = differences(task, [tuple(plain) for plain in scores])
        apart = [line for line in differing if line["margin"] is None or line["margin"] > NEAR_TIE]
        assert not apart, f"near ties aside, {rules.label} is answered differently: {apart}"
        if not differing:
            assert task.accuracy == expected
