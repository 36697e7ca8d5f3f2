"""Two ways to train side by side: how fast, and whether fp8 learns as bfloat16 does.

Rounds of both ways alternate, so that whatever else the machine does falls on both; the figure to
read is the ratio.
"""

import gc
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nanochat_core.bench.markov import ENTROPY_NATS, MarkovText
from nanochat_core.bench.train_measuring import describe, timed_steps
from nanochat_core.bench.train_setup import Parts, Setup, micro_batches, prepared_batches
from nanochat_core.errors import ConfigError, UnknownNameError

Changes = tuple[Mapping[str, object], Mapping[str, object]]

WORDS: dict[str, Changes] = {
    "eager": ({}, {"compile": False}),
    "blocks": ({}, {"compile": True, "compile_scope": "blocks"}),
    "model": ({}, {"compile": True, "compile_scope": "model"}),
    "float32": ({"compute_dtype": "float32", "fp8": False}, {}),
    "bfloat16": ({"compute_dtype": "bfloat16", "fp8": False}, {}),
    "float16": ({"compute_dtype": "float16", "fp8": False}, {}),
    "fp8": ({"compute_dtype": "bfloat16", "fp8": True}, {}),
    "sdpa": ({}, {"attention": "sdpa"}),
    "flex": ({}, {"attention": "flex"}),
    "fa3": ({}, {"attention": "fa3"}),
    "fa4": ({}, {"attention": "fa4"}),
    "recomputed": ({}, {"activation_checkpointing": True}),
    "kept": ({}, {"activation_checkpointing": False}),
}
"""What a word of a variant's name changes in recipe and execution."""


def variant_of(setup: Setup, name: str) -> Setup:
    """Another way to train, told by words: `eager-float32`, `fp8`, `flex-model`."""
    for word in name.split("-"):
        if word not in WORDS:
            raise UnknownNameError(
                f"{word!r} in the variant {name!r} is none of {', '.join(WORDS)}"
            )
        recipe, execution = WORDS[word]
        setup = setup.changed(dict(recipe), dict(execution))
    return setup


def ratio(parts: Parts, other: Parts, *, rounds: int, steps: int, warm_up: int) -> dict[str, Any]:
    """How many times as long the other way takes for the same steps, round by round."""
    sides = [(side, prepared_batches(side)) for side in (parts, other)]
    for side, batches in sides:
        timed_steps(side, batches, warm_up + 1)
    seconds = [
        [sum(timed_steps(side, batches, steps).seconds) for side, batches in sides]
        for _ in range(rounds)
    ]
    ratios = [theirs / own for own, theirs in seconds]
    tokens = steps * other.plan.tokens_per_step
    return {
        "against_tokens_per_second": round(tokens / statistics.median(s[1] for s in seconds)),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "rounds": rounds,
    }


def fp8_loss_check(setup: Setup, make: Callable[[Setup], Parts], steps: int) -> dict[str, Any]:
    """Train in bfloat16 and in fp8 from the same weights on the same rows; compare the losses.

    The rows are new in every step, and can be learnt down to `floor`. `loss` is the running mean
    that the training loop keeps (0.9 of it is the past), so single batches hardly matter.
    """
    if steps < 1:
        raise ConfigError(f"--fp8-loss-check {steps}: give the number of steps, as in 200")
    losses, described = dict[str, float](), dict[str, Any]()
    for name in ("bfloat16", "fp8"):
        parts = make(variant_of(setup, name))
        losses[name], described = final_loss(parts, steps), describe(parts)
        del parts
        gc.collect()  # the first model, before there is a second
        torch.cuda.empty_cache()
    difference = (losses["fp8"] - losses["bfloat16"]) / losses["bfloat16"]
    return {
        "fp8_loss_check_steps": steps,
        "loss": {name: round(loss, 6) for name, loss in losses.items()},
        "relative_difference": round(difference, 7),
        "floor": round(ENTROPY_NATS, 4),
        **described,
    }


def final_loss(parts: Parts, steps: int) -> float:
    """The running loss after a whole short run."""
    text = MarkovText(parts.plan.model.vocab_size, parts.setup.recipe.seed)
    parts.train(lambda step: micro_batches(parts, text, step), steps)
    return parts.state.smooth_loss
