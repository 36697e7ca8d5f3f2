"""Bits per byte against the definition, in float64."""

import math

import pytest
import torch
from eval_tools import make_batches, make_model, make_tokenizer

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import DataError, TrainingError
from nanochat_core.evals.bits_per_byte import bits_per_byte, loss_totals
from nanochat_core.model.gpt import GPT

TOKENIZER = make_tokenizer()
RANKS = Ranks.single()


def direct(model: GPT, tokens: torch.Tensor, targets: torch.Tensor) -> float:
    nats, num_bytes = 0.0, 0
    with torch.no_grad():
        logp = torch.log_softmax(model(tokens).double(), dim=-1)
    for row in range(targets.shape[0]):
        for t, target in enumerate(targets[row].tolist()):
            length = 0 if target < 0 else int(TOKENIZER.token_bytes[target])
            if length > 0:
                nats -= float(logp[row, t, target])
                num_bytes += length
    return nats / (math.log(2) * num_bytes)


def test_it_equals_the_definition() -> None:
    model, (tokens, targets) = make_model(), make_batches()
    value = bits_per_byte(model, [(tokens, targets)], TOKENIZER.token_bytes, RANKS)
    assert value == pytest.approx(direct(model, tokens, targets), rel=1e-6)


def test_how_rows_are_batched_does_not_change_it() -> None:
    model, (tokens, targets) = make_model(), make_batches()
    whole = loss_totals(model, [(tokens, targets)], TOKENIZER.token_bytes, RANKS)
    rows = [(tokens[i : i + 1], targets[i : i + 1]) for i in range(len(tokens))]
    split = loss_totals(model, rows, TOKENIZER.token_bytes, RANKS)
    assert (whole.num_bytes, whole.num_targets) == (split.num_bytes, split.num_targets)
    assert split.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)


def test_training_can_go_on_after_it() -> None:
    model, batch = make_model(), make_batches()
    bits_per_byte(model, [batch], TOKENIZER.token_bytes, RANKS)
    model(*batch).backward()
    assert model.lm_head.weight.grad is not None


def test_no_bytes_and_bad_weights_are_errors() -> None:
    model, (tokens, targets) = make_model(), make_batches()
    special = torch.full_like(targets, TOKENIZER.bos_id)
    with pytest.raises(DataError, match="at least one target"):
        bits_per_byte(model, [(tokens, special)], TOKENIZER.token_bytes, RANKS)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="not finite"):
        bits_per_byte(model, [(tokens, targets)], TOKENIZER.token_bytes, RANKS)
