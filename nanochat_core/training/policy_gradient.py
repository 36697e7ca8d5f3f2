"""From rewarded replies to micro-batches: REINFORCE with the question's mean as baseline.

On policy, without a KL term and without clipping (RECIPE section 6). B rows, T positions.
"""

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import torch

from nanochat_core.model.loss import IGNORE_TARGET
from nanochat_core.training.rollouts import Rollout
from nanochat_core.training.step import MicroBatch

SHORTEST = 32


def advantages(rewards: Sequence[float]) -> list[float]:
    """Each reward of one question's samples minus their mean."""
    mean = fmean(rewards)
    return [reward - mean for reward in rewards]


def token_weights(
    rollouts: Sequence[Rollout], *, normalise_group: int, num_groups: int
) -> list[float]:
    """What every sampled token of a sample weighs in the loss; samples of one question.

    A group's weighted log-probabilities are divided by its number of sampled tokens (at least 1),
    and the mean is over `num_groups` groups: those of all questions on all ranks.
    """
    weights = []
    values = advantages([rollout.reward for rollout in rollouts])
    for first in range(0, len(rollouts), normalise_group):
        group = slice(first, first + normalise_group)
        valid = sum(sum(rollout.reply.is_sampled) for rollout in rollouts[group])
        weights += [value / max(1, valid) / num_groups for value in values[group]]
    return weights


def policy_micro_batches(
    rollouts: Sequence[Rollout], weights: Sequence[float], *, rows: int, pad_id: int
) -> list[MicroBatch]:
    """Micro-batches of `rows` rows, on the CPU; the loss falls where good replies get likelier.

    Only sampled tokens have a weight: not the prompt, nor what a tool said, nor the stop token.
    """
    batches = []
    for first in range(0, len(rollouts), rows):
        own = slice(first, first + rows)
        batches.append(_micro_batch(rollouts[own], weights[own], pad_id))
    return batches


def padded_length(length: int) -> int:
    """The next of 32, 48, 64, 96, 128, 192, ...: few shapes for a compiler, little padding."""
    size = SHORTEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def _micro_batch(rollouts: Sequence[Rollout], weights: Sequence[float], pad_id: int) -> MicroBatch:
    shape = len(rollouts), padded_length(max(rollout.length for rollout in rollouts) - 1)
    inputs_BT = np.full(shape, pad_id, dtype=np.int64)
    targets_BT = np.full(shape, IGNORE_TARGET, dtype=np.int64)
    weights_BT = np.zeros(shape, dtype=np.float32)
    for row, (rollout, weight) in enumerate(zip(rollouts, weights, strict=True)):
        ids = [*rollout.prompt, *rollout.reply.tokens]
        inputs_BT[row, : len(ids) - 1] = ids[:-1]
        # Position i predicts token i + 1, so the reply's first token belongs to the prompt's last.
        reply = slice(len(rollout.prompt) - 1, len(ids) - 1)
        is_sampled = np.array(rollout.reply.is_sampled, dtype=bool)
        targets_BT[row, reply] = np.where(is_sampled, rollout.reply.tokens, IGNORE_TARGET)
        weights_BT[row, reply] = np.where(is_sampled, weight, 0.0)
    return MicroBatch(
        torch.from_numpy(inputs_BT),
        torch.from_numpy(targets_BT),
        1.0,
        torch.from_numpy(weights_BT),
        has_gradient=bool(weights_BT.any()),
    )
