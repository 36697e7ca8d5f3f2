"""The loss of fine-tuning on conversations that are never trained with.

They follow from the mixture: the test rows of its published sets, where their files are there
(RECIPE section 6), and made conversations of families that are held out. Of own files and of
questions about documents nothing is held out.

Nothing here draws from a generator of the training, so weights are the same without it.
"""

import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from nanochat_core.benchmarks.files import expected_files, file_of
from nanochat_core.benchmarks.identity import make_identity
from nanochat_core.benchmarks.pools import BenchmarkPool, open_set
from nanochat_core.benchmarks.sums import make_sums
from nanochat_core.config.job import JobSpec
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.conversation.mixture import BuiltMixture, Place
from nanochat_core.conversation.pools import Pool, permutation
from nanochat_core.conversation.recipes import SET_KINDS, Mixture, MixturePart
from nanochat_core.data.conversation_rows import ConversationRows
from nanochat_core.distributed.collectives import sum_numbers
from nanochat_core.errors import DataError
from nanochat_core.jobs.device_rows import rows_of
from nanochat_core.jobs.in_training import forward_rows
from nanochat_core.jobs.sft_conversations import BENCHMARKS_INPUT, render_rows
from nanochat_core.jobs.training_run import TrainingRun, to_device
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.loop import Hook

log = logging.getLogger(__name__)

VAL_LOSS = "val/loss"
TEST_ROWS = {"mmlu": 5_200, "gsm8k": 420}
"""RECIPE section 6: so many of the first ones; of the other sets all."""
MADE_SUMS, SEED = 100, 42
MAX_CONVERSATIONS = 256
"""Of all of them, shuffled: with SmolTalk some 200,000 tokens, which is enough for a curve."""


def held_out_loss(
    run: TrainingRun,
    mixture: Mixture,
    facts: ModelFacts,
    tokenizer: Tokenizer,
    *,
    buffer: int,
) -> list[Hook]:
    """The hook that writes `val/loss`; none where nobody asks for it, or nothing is held out."""
    every, sequence_len = run.spec.execution.eval_every, run.state.model.config.sequence_len
    held_out = held_out_mixture(run.spec, mixture, facts) if every > 0 else None
    if held_out is None:
        return []
    try:
        taught = render_rows(
            held_out, tokenizer, run.ranks, sequence_len=sequence_len, buffer=buffer
        )
    except DataError as error:
        log.warning("no %s: of the held-out conversations %s", VAL_LOSS, error)
        return []
    evaluate = validation_loss(run, taught.rows)
    return [run.evaluation_hook(evaluate, VAL_LOSS, every, at_ends=True)]


def held_out_mixture(spec: JobSpec, mixture: Mixture, facts: ModelFacts) -> BuiltMixture | None:
    """Some of the conversations that belong to the parts of a mixture; None where none do."""
    folder = spec.input(BENCHMARKS_INPUT) if BENCHMARKS_INPUT in spec.inputs else None
    pools: dict[str, Pool] = {}
    for part in mixture.parts:
        if part.label not in pools and (pool := _held_out(part, facts, folder)) is not None:
            pools[part.label] = pool
    order: list[Place] = []
    for number, (label, pool) in enumerate(pools.items()):
        rows = permutation(len(pool))[: TEST_ROWS.get(label, len(pool))]
        order += [(number, row) for row in rows]
    if not order:
        log.info("no %s: of none of its parts conversations are held out", VAL_LOSS)
        return None
    random.Random(SEED).shuffle(order)
    kept = order[:MAX_CONVERSATIONS]
    counts = {label: sum(p == n for p, _ in kept) for n, label in enumerate(pools)}
    log.info("%s is of %s", VAL_LOSS, ", ".join(f"{n} of {label}" for label, n in counts.items()))
    return BuiltMixture(tuple(pools.values()), tuple(kept), counts)


def _held_out(part: MixturePart, facts: ModelFacts, folder: Path | None) -> Pool | None:
    if part.kind == "identity":
        return BenchmarkPool(make_identity("test", 0, facts))
    if part.kind == "sums":
        return BenchmarkPool(make_sums("test", MADE_SUMS, SEED))
    if part.kind not in SET_KINDS or folder is None:
        return None
    names = expected_files(part.kind, "test")
    if not any((folder / name).is_file() for name in names):
        log.info("%s is without %s: no %s is given", VAL_LOSS, part.kind, " or ".join(names))
        return None
    return open_set(part.kind, file_of(folder, part.kind, "test"))


def validation_loss(run: TrainingRun, rows: ConversationRows) -> Callable[[], Mapping[str, float]]:
    """Mean loss in nats of the supervised tokens of all rows, with the weights as they are."""
    ranks = run.ranks

    def evaluate() -> Mapping[str, float]:
        model = run.state.model
        size = forward_rows(model.config, rows_of(run.spec))
        nats = num_targets = 0.0
        for first in range(ranks.rank * size, rows.num_rows, ranks.world_size * size):
            inputs, targets = rows.read(first, min(size, rows.num_rows - first))
            tokens_BT, targets_BT = (to_device(each, ranks.device) for each in (inputs, targets))
            # no_grad, not inference_mode: what the model caches must stay usable in training.
            with torch.no_grad():
                nats += float(model(tokens_BT, targets_BT, reduction="sum"))
            num_targets += float((targets >= 0).sum())
        nats, num_targets = sum_numbers([nats, num_targets], ranks)
        log.info("step %d: %s %.4f", run.state.step, VAL_LOSS, nats / num_targets)
        return {VAL_LOSS: nats / num_targets}

    return evaluate
