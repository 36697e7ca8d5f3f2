"""Ask the model about examples: every token that prompts share is computed once, and logits are
made only where something is scored.

Shapes: L places whose logits are wanted, R reads of them, V vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nanochat_core.errors import TrainingError
from nanochat_core.evals.bundle import TaskType
from nanochat_core.evals.core_prompts import Prompt
from nanochat_core.evals.shared_prefixes import Costs, Tree, batches, plant
from nanochat_core.evals.tree_model import TreeModel
from nanochat_core.evals.tree_pass import TreePass
from nanochat_core.model.gpt import GPT
from nanochat_core.model.loss import soft_cap

LOGITS_AT_ONCE = 1 << 22
"""In float32; more would leave the cache of a CPU, and fill the memory of a GPU."""


class Asker:
    """Scores prompts with the weights that `model` has when this is made."""

    def __init__(self, model: GPT) -> None:
        self._model = TreeModel(model)
        self._costs = Costs.of(model.config.n_embd, model.windows)

    def scores(
        self,
        items: Sequence[Sequence[Prompt]],
        task_type: TaskType,
        *,
        batch_tokens: int,
        on_done: Callable[[int], None] = lambda _: None,
    ) -> list[tuple[float, ...]]:
        """Of each example the scores of its options.

        They are the mean losses of the spans in nats, +inf where nothing can be scored; or, for
        language_modeling, 1.0 where the likeliest token is the right one throughout the span, else
        0.0. `batch_tokens` bounds the tokens of a forward pass, save that one example always fits.
        `on_done` gets the number of prompts that each pass settles. Raises TrainingError where the
        model gives NaN.
        """
        is_language = task_type == "language_modeling"
        judge = _right if is_language else _losses
        prompts, trees = plant(items, self._costs, batch_tokens)
        found = np.full(len(prompts), 0.0 if is_language else np.inf)
        for batch in batches(trees, batch_tokens):
            numbers, values = self._judged(batch, judge)
            found[numbers] = values
            on_done(len(numbers))
        if np.isnan(found).any():
            raise TrainingError(
                "the model gives NaN on an evaluation prompt, so that nothing can be scored: its "
                "weights are bad; take an earlier checkpoint, or train with lower learning rates"
            )
        rest = iter(found.tolist())
        return [tuple(next(rest) for _ in options) for options in items]

    @torch.no_grad()  # not inference_mode: see bits_per_byte
    def _judged(
        self, trees: Sequence[Tree], judge: Callable[..., NDArray[np.float64]]
    ) -> tuple[list[int], NDArray[np.float64]]:
        """Numbers of the prompts in a batch of trees, and their scores."""
        model = self._model
        step = TreePass(
            trees,
            nothing=model.nothing,
            device=model.device,
            dtype=model.dtype,
            bands=model.bands,
        )
        raw_LV = model.read(step)
        numbers: list[int] = []
        rows, bounds, num_places = [], [0], 0
        for tree in trees:
            first = bounds[-1]
            bounds += [first + end for end, _ in tree.ends]
            numbers += [number for _, number in tree.ends]
            rows.append(tree.rows_R + num_places)
            num_places += len(tree.places_L)
        targets_R = np.concatenate([tree.targets_R for tree in trees])
        return numbers, judge(raw_LV, np.concatenate(rows), targets_R, np.array(bounds))


def _losses(
    raw_LV: torch.Tensor,
    rows_R: NDArray[np.int64],
    targets_R: NDArray[np.int64],
    bounds: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Mean loss between each two bounds."""
    totals = [soft_cap(part_LV).exp().sum(dim=-1).log() for part_LV in _parts(raw_LV)]
    device = raw_LV.device
    rows, targets = (torch.from_numpy(values).to(device) for values in (rows_R, targets_R))
    losses_R = torch.cat(totals)[rows] - soft_cap(raw_LV[rows, targets])
    # Apple's GPUs have no float64.
    sums = np.add.reduceat(losses_R.cpu().double().numpy(), bounds[:-1])
    means: NDArray[np.float64] = sums / np.diff(bounds)
    return means


def _right(
    raw_LV: torch.Tensor,
    rows_R: NDArray[np.int64],
    targets_R: NDArray[np.int64],
    bounds: NDArray[np.int64],
) -> NDArray[np.float64]:
    """1.0 where the likeliest token is the target everywhere between two bounds, else 0.0.

    NaN where a logit is: the place of the first NaN is what would be taken for the likeliest.
    """
    found = [soft_cap(part_LV).max(dim=-1) for part_LV in _parts(raw_LV)]
    likeliest_L = torch.cat([each.indices for each in found]).cpu().numpy()
    is_nan_L = torch.cat([each.values.isnan() for each in found]).cpu().numpy()
    is_right = np.logical_and.reduceat(likeliest_L[rows_R] == targets_R, bounds[:-1])
    is_nan = np.logical_or.reduceat(is_nan_L[rows_R], bounds[:-1])
    return np.where(is_nan, np.nan, is_right.astype(np.float64))


def _parts(raw_LV: torch.Tensor) -> Sequence[torch.Tensor]:
    return torch.split(raw_LV, max(1, LOGITS_AT_ONCE // raw_LV.size(1)))
