"""Bits per byte against the definition, in float64."""

import math

import numpy as np
import pytest
import torch
from eval_tools import make_model, make_tokenizer

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import DataError, TrainingError
from nanochat_core.evals.bits_per_byte import bits_per_byte, loss_totals

TOKENIZER = make_tokenizer()
RANKS = Ranks.single()


def make_batches(num_rows=6, length=24, seed=0):
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.integers(0, TOKENIZER.vocab_size, (num_rows, length + 1)))
    tokens[::2, 5] = TOKENIZER.bos_id
    targets = tokens[:, 1:].clone()
    targets[1, -7:] = -1
    return tokens[:, :-1], targets


def direct(model, tokens, targets):
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


def test_it_equals_the_definition():
    model, (tokens, targets) = make_model(), make_batches()
    value = bits_per_byte(model, [(tokens, targets)], TOKENIZER.token_bytes, RANKS)
    assert value == pytest.approx(direct(model, tokens, targets), rel=1e-6)


def test_how_rows_are_batched_does_not_change_it():
    model, (tokens, targets) = make_model(), make_batches()
    whole = loss_totals(model, [(tokens, targets)], TOKENIZER.token_bytes, RANKS)
    rows = [(tokens[i : i + 1], targets[i : i + 1]) for i in range(len(tokens))]
    split = loss_totals(model, rows, TOKENIZER.token_bytes, RANKS)
    assert (whole.num_bytes, whole.num_targets) == (split.num_bytes, split.num_targets)
    assert split.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)


def test_training_can_go_on_after_it():
    model, batch = make_model(), make_batches()
    bits_per_byte(model, [batch], TOKENIZER.token_bytes, RANKS)
    model(*batch).backward()
    assert model.lm_head.weight.grad is not None


def test_no_bytes_and_bad_weights_are_errors():
    model, (tokens, targets) = make_model(), make_batches()
    special = torch.full_like(targets, TOKENIZER.bos_id)
    with pytest.raises(DataError, match="at least one target"):
        bits_per_byte(model, [(tokens, special)], TOKENIZER.token_bytes, RANKS)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="not finite"):
        bits_per_byte(model, [(tokens, targets)], TOKENIZER.token_bytes, RANKS)
