"""Training speed of a small model: this machine's best path against eager float32, in one process.

Rounds of both variants alternate, so that whatever else the machine does falls on both; the figure
to read is the ratio. Whole steps are timed: forward, backward and optimizer. Weights and tokens are
random, which changes no speed.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nanochat_core.distributed.ranks import Ranks, pick_device
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.optim.gradient_sum import GradientSum
from nanochat_core.optim.muon_adamw import MuonAdamW
from nanochat_core.optim.recipe import OptimizerRecipe
from nanochat_core.training.compiling import loss_function
from nanochat_core.training.groups import build_groups
from nanochat_core.training.precision import resolve_compute_dtype
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import LossFunction, MicroBatch, StepRates, train_step

DEMO_MODEL = ModelConfig(
    sequence_len=256,
    vocab_size=2048,
    n_layer=2,
    n_head=1,
    n_kv_head=1,
    n_embd=128,
    window_pattern="SSSL",
)
RATES = StepRates(lr_multiplier=0.1, momentum=0.9, weight_decay_multiplier=0.0)


@dataclass(frozen=True)
class Variant:
    """One way to run the same step."""

    name: str
    state: TrainState
    loss: LossFunction
    gradients: GradientSum


def build_variant(name: str, dtype: torch.dtype, ranks: Ranks, *, compiled: bool) -> Variant:
    """A model and optimizer of the demo's shape."""
    model = GPT(DEMO_MODEL, dtype)
    model.init_weights(seed=0)
    model.to(ranks.device)
    groups = build_groups(
        model.named_parameters(),
        OptimizerRecipe(),
        batch_lr_scale=1.0,
        width_lr_scale=1.0,
        muon_weight_decay=0.0,
    )
    optimizer = MuonAdamW(groups, ranks, compute_dtype=dtype, compile=compiled)
    return Variant(
        name,
        TrainState(model, optimizer),
        loss_function(model, compiled=compiled),
        GradientSum(list(model.parameters())),
    )


def run_steps(variant: Variant, batch: MicroBatch, steps: int, ranks: Ranks) -> float:
    """Seconds that `steps` whole steps take."""
    started = time.perf_counter()
    for _ in range(steps):
        loss = train_step(
            variant.state,
            [batch],
            RATES,
            loss_function=variant.loss,
            gradients=variant.gradients,
            ranks=ranks,
        )
    loss.item()
    return time.perf_counter() - started


def main(argv: Sequence[str]) -> None:
    """Time both variants and print one JSON object."""
    parser = argparse.ArgumentParser(prog="nanochat bench train", description=__doc__)
    parser.add_argument("--rows", type=int, default=8, help="rows of 256 tokens in a step")
    parser.add_argument("--steps", type=int, default=30, help="steps of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    ranks = Ranks.single(pick_device("auto"))
    best = resolve_compute_dtype("auto", ranks.device)
    generator = torch.Generator().manual_seed(0)
    shape = (options.rows, DEMO_MODEL.sequence_len)
    tokens = torch.randint(DEMO_MODEL.vocab_size, shape, generator=generator).to(ranks.device)
    batch = MicroBatch(tokens, tokens.roll(-1, dims=1), 1 / tokens.numel())
    variants = [
        build_variant("eager float32", torch.float32, ranks, compiled=False),
        build_variant(f"compiled {str(best).removeprefix('torch.')}", best, ranks, compiled=True),
    ]
    for variant in variants:
        run_steps(variant, batch, 3, ranks)
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for _ in range(options.rounds):
        for variant in variants:
            seconds[variant.name].append(run_steps(variant, batch, options.steps, ranks))
    tokens_of_round = options.steps * tokens.numel()
    slow, fast = (seconds[variant.name] for variant in variants)
    report = {
        "tokens_per_second": {
            name: round(tokens_of_round / statistics.median(times))
            for name, times in seconds.items()
        },
        "ratio_median": round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2),
        "ratio_min": round(min(a / b for a, b in zip(slow, fast, strict=True)), 2),
        "device": str(ranks.device),
        "threads": options.threads,
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
