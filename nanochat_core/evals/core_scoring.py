"""Ask the model about many prompts: batches of like length, padded on the right.

Attention is causal, so padding after a prompt cannot change what is read off before it.
Shapes: B prompts, T positions, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from nanochat_core.errors import TrainingError
from nanochat_core.evals.core_prompts import Prompt
from nanochat_core.model.gpt import GPT

IGNORE_TARGET = -1


def span_losses(
    model: GPT,
    prompts: Sequence[Prompt],
    *,
    batch_tokens: int,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Mean loss in nats of each prompt's span; +inf where there is nothing to score.

    `batch_tokens` bounds B*T of a forward pass, save that one prompt always fits. `on_done` gets
    the number of prompts that each batch settles. Raises TrainingError for a loss that is NaN.
    """
    losses = [float("inf")] * len(prompts)
    for members in _batches(prompts, batch_tokens):
        tokens_BT, targets_BT = _tensors([prompts[i] for i in members], model.device)
        with torch.no_grad():  # not inference_mode: see bits_per_byte
            losses_BT = model(tokens_BT, targets_BT, reduction="none").cpu().double()
        counts_B = (targets_BT.cpu() >= 0).sum(dim=1)
        for i, loss in zip(members, (losses_BT.sum(dim=1) / counts_B).tolist(), strict=True):
            losses[i] = loss
        on_done(len(members))
    if any(loss != loss for loss in losses):
        raise TrainingError("the model's loss is NaN on an evaluation prompt; its weights are bad")
    return losses


def span_matches(
    model: GPT,
    prompts: Sequence[Prompt],
    *,
    batch_tokens: int,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[bool]:
    """Whether the likeliest token is the right one everywhere in each prompt's span."""
    matches = [False] * len(prompts)
    for members in _batches(prompts, batch_tokens):
        tokens_BT, targets_BT = _tensors([prompts[i] for i in members], model.device)
        with torch.no_grad():
            likeliest_BT = model(tokens_BT).argmax(dim=-1)
        right_B = ((likeliest_BT == targets_BT) | (targets_BT == IGNORE_TARGET)).all(dim=1)
        for i, is_right in zip(members, right_B.tolist(), strict=True):
            matches[i] = is_right
        on_done(len(members))
    return matches


def _batches(prompts: Sequence[Prompt], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of the prompts that can be scored, longest first, so that memory peaks at once."""
    scored = [i for i, prompt in enumerate(prompts) if prompt.is_scored]
    scored.sort(key=lambda i: -len(prompts[i].tokens))
    first = 0
    while first < len(scored):
        longest = len(prompts[scored[first]].tokens) - 1
        count = max(1, batch_tokens // longest)
        yield scored[first : first + count]
        first += count


def _tensors(prompts: Sequence[Prompt], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T); only the targets of the spans are not ignored."""
    length = max(len(prompt.tokens) for prompt in prompts) - 1
    tokens_BT = np.zeros((len(prompts), length), dtype=np.int64)
    targets_BT = np.full((len(prompts), length), IGNORE_TARGET, dtype=np.int64)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt.tokens) - 1] = prompt.tokens[:-1]
        span = slice(prompt.start - 1, prompt.end - 1)
        targets_BT[row, span] = prompt.tokens[prompt.start : prompt.end]
    return torch.from_numpy(tokens_BT).to(device), torch.from_numpy(targets_BT).to(device)
