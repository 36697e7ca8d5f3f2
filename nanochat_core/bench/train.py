"""Training speed, as one line of JSON: the real step of the real model, on made-up text.

Without options: the model of the preset `demo`, and how many times as fast it is as eager float32.
With --depth: the model, batch and rates of the depth dial. Reading rows from disk is no part of it.
The whole step is: forward, backward, sums over ranks, optimizer, under the training loop. On a GPU
steps are timed by events in its own stream, so that nothing waits that would not wait in a run.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat_core.artifacts.location import user_cache_folder
from nanochat_core.bench.cold_start import cold_start
from nanochat_core.bench.train_measuring import PeakMemory, describe, measure
from nanochat_core.bench.train_setup import (
    DEMO,
    DEMO_VOCAB_SIZE,
    VOCAB_SIZE,
    Parts,
    Setup,
    build,
)
from nanochat_core.bench.train_variants import WORDS, fp8_loss_check, ratio, variant_of
from nanochat_core.config.execution import Execution
from nanochat_core.distributed.ranks import Ranks, init_ranks
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.logs import configure_logging
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.torch_setup import set_up_torch

NONE = "none"
DEMO_AGAINST = "eager-float32"
EXIT_ERROR, EXIT_CONFIG = 1, 2
EPILOG = """\
figures:
  mfu_measured             share of what a large matrix product reaches here in the same dtype
  mfu_data_sheet           share of the GPU maker's bfloat16 figure, where it is known
  seconds_to_first_step    from the start of the process, imports and compilation included
  compile_seconds          what the first steps take longer than later ones
  checkpoint_stall_seconds median time that a save keeps the loop waiting
  checkpoint_cost_seconds  what a save costs in all, slower steps beside the writer included;
                           a checkpoint every 60 s costs a sixtieth of it

a variant, for --against, is one or more of these words, joined by -:
  {words}

examples:
  nanochat bench train
  nanochat bench train --depth 4 --sequence-len 512 --tokens-per-step 8192 --threads 2
  nanochat bench train --against flex --checkpoints 0
  nanochat bench train --cold-start

on an H100:
  depth 12, bfloat16, steps of half a million tokens: tokens/s, memory, stalls
    nanochat bench train --depth 12 --dtype bfloat16 --sequence-len 2048 \\
      --tokens-per-step 524288 --device-batch-size 32 --steps 40 --checkpoints 3
  depth 24, fp8 against bfloat16: the ratio of tokens_per_second of the two, then the loss
    nanochat bench train --depth 24 --dtype bfloat16 --tokens-per-step 524288 \\
      --device-batch-size 16 --steps 20 --checkpoints 0
    nanochat bench train --depth 24 --dtype bfloat16 --fp8 --tokens-per-step 524288 \\
      --device-batch-size 16 --steps 20 --checkpoints 0
    nanochat bench train --depth 24 --tokens-per-step 524288 --device-batch-size 16 \\
      --fp8-loss-check 200
  from the start of the process to the end of the first step, cold and with compiled code
    nanochat bench train --depth 12 --dtype bfloat16 --device-batch-size 32 --cold-start
    nanochat bench train --depth 24 --dtype bfloat16 --device-batch-size 16 --cold-start
  eight GPUs
    torchrun --nproc-per-node 8 -m nanochat_core.bench.train --depth 24 --dtype bfloat16 --fp8 \\
      --device-batch-size 16 --checkpoints 0
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    words = ", ".join(WORDS)
    made = argparse.ArgumentParser(
        prog="nanochat bench train",
        description=__doc__,
        epilog=EPILOG.format(words=words),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model_options(made.add_argument_group("model"))
    _add_run_options(made.add_argument_group("how it runs"))
    _add_measuring_options(made.add_argument_group("what is measured"))
    return made


def _add_model_options(group: Any) -> None:
    group.add_argument("--depth", type=int, help="layers, the one dial; default: the demo's model")
    group.add_argument("--sequence-len", type=int, help="default 2048; the demo's 256")
    group.add_argument("--vocab-size", type=int, help="default 32768; the demo's 2048")
    group.add_argument("--tokens-per-step", type=int, help="default: the dial's; the demo's 2048")
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    group.add_argument("--fp8", action="store_true", help="large products in 8 bits")
    group.add_argument("--seed", type=int, default=42, help="of weights and text")


def _add_run_options(group: Any) -> None:
    group.add_argument("--device", default="auto", help="auto, cuda, mps, cpu")
    group.add_argument("--threads", type=int, default=1, help="CPU threads")
    group.add_argument("--device-batch-size", default="auto", help="rows of a micro-batch, or auto")
    group.add_argument("--attention", default="auto", help="auto, fa3, fa4, flex, sdpa")
    group.add_argument("--compile", default="blocks", choices=("blocks", "model", "off"))
    group.add_argument(
        "--activation-checkpointing", action="store_true", help="compute activations twice"
    )
    group.add_argument(
        "--reduction",
        default="exact",
        choices=("exact", "fast"),
        help="exact: bits that repeat, on a GPU by deterministic kernels",
    )
    group.add_argument("--cache", metavar="FOLDER", help="what attention trials found is kept here")


def _add_measuring_options(group: Any) -> None:
    group.add_argument("--steps", type=int, default=30, help="steps that are timed")
    group.add_argument("--warm-up", type=int, default=3, help="steps after the first, not timed")
    group.add_argument("--checkpoints", type=int, default=3, help="saves that are timed; 0: none")
    group.add_argument(
        "--against", metavar="VARIANT", help=f"a second way; the demo's default {DEMO_AGAINST}"
    )
    group.add_argument("--rounds", type=int, default=5, help="of --steps of both, in turn")
    group.add_argument(
        "--fp8-loss-check", type=int, metavar="STEPS", help="instead: losses of bfloat16 and fp8"
    )
    group.add_argument(
        "--cold-start", action="store_true", help="instead: the first step, nothing compiled yet"
    )
    group.add_argument("--out", metavar="FILE", help="write the line here, too")


def setup_of(options: argparse.Namespace) -> Setup:
    """The options as the types that jobs are told with."""
    is_demo = options.depth is None
    base = Setup(
        recipe=DEMO if is_demo else PretrainRecipe(),
        execution=Execution(),
        vocab_size=options.vocab_size or (DEMO_VOCAB_SIZE if is_demo else VOCAB_SIZE),
    )
    given = {
        "depth": options.depth,
        "sequence_len": options.sequence_len,
        "tokens_per_step": options.tokens_per_step,
    }
    recipe = {name: value for name, value in given.items() if value is not None}
    recipe |= {"compute_dtype": options.dtype, "fp8": options.fp8, "seed": options.seed}
    execution = {
        "device": options.device,
        "threads": options.threads,
        "device_batch_size": rows_of(options.device_batch_size),
        "attention": options.attention,
        "reduction": options.reduction,
        "compile": options.compile != "off",
        "compile_scope": "model" if options.compile == "model" else "blocks",
        "activation_checkpointing": options.activation_checkpointing,
    }
    return base.changed(recipe, execution)


def rows_of(text: str) -> int | str:
    """A number of rows, or `auto`; what it cannot be is refused later, by name."""
    return int(text) if text.isdecimal() else text


def check(options: argparse.Namespace) -> None:
    """Refuse numbers that nothing can be measured with."""
    for name, least in (("steps", 1), ("warm_up", 0), ("checkpoints", 0), ("rounds", 1)):
        if getattr(options, name) < least:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {getattr(options, name)}; give {least} or more")


def report_of(options: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Measure what was asked for in this process."""
    setup = setup_of(options)
    cache = Path(options.cache) if options.cache else user_cache_folder() / "attention"

    def make(changed: Setup) -> Parts:
        return build(changed, ranks, cache)

    if options.fp8_loss_check is not None:
        return fp8_loss_check(setup, make, options.fp8_loss_check)
    against = options.against or (DEMO_AGAINST if options.depth is None else NONE)
    other = None if against == NONE else variant_of(setup, against)
    memory = PeakMemory(ranks.device)
    parts = make(setup)
    sizes = {"warm_up": options.warm_up, "steps": options.steps}
    report = measure(parts, memory, checkpoints=options.checkpoints, **sizes)
    if other is not None:
        sides = ratio(parts, make(other), rounds=options.rounds, **sizes)
        report |= {"against": against, **sides}
    return {**report, **describe(parts)}


def run(argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any] | None:
    """The report; None on ranks that have nothing to say."""
    options = parser().parse_args(argv)
    check(options)
    if options.cold_start:
        rest = [word for word in argv if word != "--cold-start"]
        report = cold_start(rest, environ)
        ranks = Ranks.single()
    else:
        ranks = init_ranks(options.device, environ=environ)
        set_up_torch(setup_of(options).execution, ranks.device)
        report = report_of(options, ranks)
        ranks.close()
    if not ranks.is_main:
        return None
    if options.out:
        Path(options.out).write_text(json.dumps(report) + "\n", encoding="utf-8")
    return report


def main(argv: Sequence[str]) -> int:
    """Measure and print one line; the exit code is 2 for a mistake in the options."""
    configure_logging()
    try:
        report = run(argv, os.environ)  # noqa: TID251  an entry: read here, passed down
    except NanochatError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_ERROR
    if report is not None:
        sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
