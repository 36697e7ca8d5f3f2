"""Bits per byte: a loss that does not depend on the tokenizer (RECIPE section 4).

Shapes: B rows, T positions, V vocabulary.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nanochat_core.distributed.collectives import sum_numbers
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import DataError, TrainingError
from nanochat_core.model.gpt import GPT

Batch = tuple[torch.Tensor, torch.Tensor]
"""tokens_BT and targets_BT, int64; a target below zero is not scored."""


@dataclass(frozen=True)
class LossTotals:
    """Summed loss of one pass, over all ranks."""

    nats: float
    num_bytes: int
    num_targets: int

    @property
    def bits_per_byte(self) -> float:
        """Nats over ln 2 times the bytes they were spent on."""
        return self.nats / (math.log(2) * self.num_bytes)

    @property
    def nats_per_token(self) -> float:
        """Mean loss of the targets that stand for at least one byte."""
        return self.nats / self.num_targets


def bits_per_byte(
    model: GPT, batches: Iterable[Batch], token_bytes: NDArray[np.int64], ranks: Ranks
) -> float:
    """How many bits the model needs for a byte of text; lower is better.

    Every rank passes its own batches and gets the value of all of them. `token_bytes` (V,) holds
    the bytes of each token, 0 for special tokens, which are not scored.
    """
    return loss_totals(model, batches, token_bytes, ranks).bits_per_byte


def loss_totals(
    model: GPT, batches: Iterable[Batch], token_bytes: NDArray[np.int64], ranks: Ranks
) -> LossTotals:
    """The sums behind `bits_per_byte`; in float64, so that the order hardly matters.

    Raises DataError when no target has a byte, TrainingError when the loss is not finite.
    """
    bytes_V = torch.as_tensor(np.asarray(token_bytes), dtype=torch.int64)
    totals_3 = torch.zeros(3, dtype=torch.float64)
    for tokens_BT, targets_BT in batches:
        totals_3 += _batch_totals(model, tokens_BT, targets_BT, bytes_V)
    nats, num_bytes, num_targets = sum_numbers(totals_3.tolist(), ranks)
    if not math.isfinite(nats):
        raise TrainingError(
            f"the validation loss is {nats}; the weights hold values that are not finite: "
            "train again with lower learning rates"
        )
    if num_bytes == 0:
        raise DataError(
            "bits per byte needs at least one target that stands for a byte, got none; "
            "give it more validation documents"
        )
    return LossTotals(nats, int(num_bytes), int(num_targets))


def _batch_totals(
    model: GPT, tokens_BT: torch.Tensor, targets_BT: torch.Tensor, bytes_V: torch.Tensor
) -> torch.Tensor:
    # no_grad, not inference_mode: this runs in the middle of training too, and a table that the
    # model caches here must stay usable in a later backward pass.
    with torch.no_grad():
        losses_BT = model(tokens_BT, targets_BT, reduction="none")
    # On the CPU, because MPS has no float64.
    losses_BT = losses_BT.detach().cpu().double().view(targets_BT.shape)
    targets_BT = targets_BT.cpu()
    bytes_BT = torch.where(targets_BT >= 0, bytes_V[targets_BT.clamp(min=0)], 0)
    scored_BT = bytes_BT > 0
    nats = losses_BT[scored_BT].sum()
    return torch.stack([nats, bytes_BT.sum().double(), scored_BT.sum().double()])
