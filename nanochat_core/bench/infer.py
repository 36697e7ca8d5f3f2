"""Speed of the engine, as one line of JSON: how soon replies begin, and how fast they go on.

Without options: a model of the shape that the preset `demo` trains, with made-up weights, asked
greedily for 128 tokens after prompts of 64. With --depth: that of the depth dial. With --model: one
that was trained. All requests of a batch come at once; every prompt is new and every reply is as
long as the others.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nanochat_core.bench.infer_measuring import (
    Ceilings,
    Seeds,
    against_bare_loop,
    against_one_at_a_time,
    measure_batch,
)
from nanochat_core.bench.infer_setup import Subject, loaded, made_up, made_up_tokenizer, shape_of
from nanochat_core.bench.roofline import measure_copy, measured_matmul_flops
from nanochat_core.bench.train_measuring import PeakMemory, device_name
from nanochat_core.distributed.ranks import pick_device
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.inference.settings import SamplingSettings
from nanochat_core.logs import configure_logging
from nanochat_core.training.precision import DTYPES

DEFAULT_BATCHES = "1,8,32,128"
ONE_AT_A_TIME, BARE_LOOP = "one-at-a-time", "bare-loop"
EXIT_ERROR, EXIT_CONFIG = 1, 2
EPILOG = """\
figures of each batch:
  tokens_per_second          of all replies, from the first request to the last token
  ttft_ms                    from a request to the first token of its reply, the queue included
  tpot_ms                    from a token of a reply to the next, as its mean
  prefill_tokens_per_second  prompts alone, replies being one token long
  decode_tokens_per_second   replies alone, the prompts being in the cache: while all go on
  ..._bandwidth_share        of what a copy in memory reaches here; read are the weights, once a
                             step, and keys and values within the windows
  ..._compute_share          of what a large matrix product reaches here in the same dtype
  peak_memory_bytes          on a GPU of each batch, elsewhere of all

with --against, the figure to read is the ratio, of rounds in turn:
  one-at-a-time              how many times as fast a batch is as its requests one by one
  bare-loop                  speed of the engine with one request, as a share of that of a loop
                             around the same model that does nothing else

examples:
  nanochat bench infer
  nanochat bench infer --batch 16,32 --against one-at-a-time
  nanochat bench infer --batch 1 --against bare-loop --rounds 9
  nanochat bench infer --model FOLDER --tokenizer FOLDER --temperature 0.8 --top-k 50

on an H100:
  depth 12, bfloat16: decode_tokens_per_second with one request and with 128
    nanochat bench infer --depth 12 --dtype bfloat16 --prompt 1024 --new 256 --batch 1,8,32,128
  what comes of the batch, and what the engine costs
    nanochat bench infer --depth 12 --dtype bfloat16 --prompt 1024 --new 256 --batch 16,32 \\
      --against one-at-a-time
    nanochat bench infer --depth 12 --dtype bfloat16 --prompt 1024 --new 256 --batch 1 \\
      --against bare-loop
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="nanochat bench infer",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model_options(made.add_argument_group("model"))
    _add_request_options(made.add_argument_group("what is asked"))
    _add_run_options(made.add_argument_group("how it is measured"))
    return made


def _add_model_options(group: Any) -> None:
    group.add_argument("--depth", type=int, help="layers, the one dial; default: the demo's model")
    group.add_argument("--sequence-len", type=int, help="default 2048; the demo's 256")
    group.add_argument("--vocab-size", type=int, help="default 32768; the demo's 2048")
    group.add_argument("--model", metavar="FOLDER", type=Path, help="a trained model instead")
    group.add_argument(
        "--tokenizer", metavar="FOLDER", type=Path, help="of --model; default: tokenizer in it"
    )
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", *DTYPES),
        help="auto, as when served: bfloat16 on a GPU, else float32",
    )


def _add_request_options(group: Any) -> None:
    group.add_argument("--batch", default=DEFAULT_BATCHES, help=f"default {DEFAULT_BATCHES}")
    group.add_argument("--prompt", type=int, default=64, help="tokens, default 64")
    group.add_argument("--new", type=int, default=128, help="tokens of a reply, default 128")
    group.add_argument("--temperature", type=float, default=0.0, help="default 0, greedy")
    group.add_argument("--top-k", type=int, default=0, help="default 0, every token")
    group.add_argument("--top-p", type=float, default=1.0, help="default 1, every token")
    group.add_argument("--no-text", action="store_true", help="tokens alone, as in training")


def _add_run_options(group: Any) -> None:
    group.add_argument("--device", default="auto", help="auto, cuda, mps, cpu")
    group.add_argument("--threads", type=int, default=1, help="CPU threads, default 1")
    group.add_argument("--rounds", type=int, default=3, help="of every measurement, default 3")
    group.add_argument("--exact", action="store_true", help="each row alone: bits that repeat")
    group.add_argument(
        "--against", choices=(ONE_AT_A_TIME, BARE_LOOP), help="instead: two ways, in turn"
    )
    group.add_argument("--out", metavar="FILE", help="write the line here, too")


def batches_of(text: str) -> list[int]:
    """`1,8,32` as numbers, in order of size."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"--batch {text!r}; give numbers from 1 on, as in {DEFAULT_BATCHES}")
    return sorted({int(word) for word in words})


def subject_of(options: argparse.Namespace) -> Subject:
    """The model, and what is asked of it."""
    shape_options = (options.depth, options.sequence_len, options.vocab_size)
    if options.model and any(value is not None for value in shape_options):
        raise ConfigError("--model has its own shape; leave out depth, sequence-len, vocab-size")
    if options.tokenizer and not options.model:
        raise ConfigError("--tokenizer belongs to --model; give both, or neither")
    sampling = SamplingSettings(options.temperature, options.top_k, options.top_p)
    device = pick_device(options.device)
    dtype = _dtype(options.dtype, device)
    if options.model:
        model, tokenizer = loaded(options.model, options.tokenizer, device, dtype)
    else:
        config = shape_of(*shape_options)
        tokenizer = made_up_tokenizer(config.vocab_size)
        model = made_up(config, device, dtype)
    return Subject(
        model=model,
        tokenizer=tokenizer,
        prompt=options.prompt,
        new=options.new,
        settings=sampling,
        is_exact=options.exact,
        wants_text=not options.no_text,
    )


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def check(options: argparse.Namespace) -> list[int]:
    """Refuse numbers that nothing can be measured with; the batches."""
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)}; give 1 or more")
    batches = batches_of(options.batch)
    if options.against == BARE_LOOP and batches != [1]:
        raise ConfigError("the bare loop has one request at a time; give --batch 1")
    if options.against == BARE_LOOP and options.temperature > 0:
        raise ConfigError("the bare loop is greedy; leave out --temperature")
    return batches


def report_of(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for in this process."""
    batches = check(options)
    torch.set_num_threads(options.threads)
    memory = PeakMemory(pick_device(options.device))
    subject, seeds = subject_of(options), Seeds()
    told = describe(subject, options)
    if options.against == BARE_LOOP:
        return (
            {"against": BARE_LOOP}
            | against_bare_loop(subject, rounds=options.rounds, seeds=seeds)
            | told
        )
    if options.against == ONE_AT_A_TIME:
        found = [
            against_one_at_a_time(subject, batch, rounds=options.rounds, seeds=seeds)
            for batch in batches
        ]
        return {"against": ONE_AT_A_TIME, "batches": found, **told}
    ceilings = measured_ceilings(subject.model.device, subject.model.compute_dtype)
    measured = [
        measure_batch(subject, batch, rounds=options.rounds, seeds=seeds, ceilings=ceilings)
        for batch in batches
    ]
    return {
        "batches": measured,
        "peak_memory_bytes": max(
            [memory.bytes, *(m.get("peak_memory_bytes", 0) for m in measured)]
        ),
        "peak_memory_is": memory.meaning,
        "roofline_flops": round(ceilings.flops_per_second),
        "roofline_bytes_per_second": round(ceilings.bytes_per_second),
        **told,
    }


def measured_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """What products in a dtype and copies reach here."""
    return Ceilings(measured_matmul_flops(device, dtype), measure_copy(device).per_second)


def describe(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that tells this run from others."""
    model, config = subject.model, subject.model.config
    return {
        "prompt": subject.prompt,
        "new": subject.new,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "is_exact": subject.is_exact,
        "has_text": subject.wants_text,
        "rounds": options.rounds,
        "depth": config.n_layer,
        "width": config.n_embd,
        "sequence_len": config.sequence_len,
        "vocab_size": config.vocab_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.compute_dtype).removeprefix("torch."),
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(argv: Sequence[str]) -> int:
    """Measure and print one line; the exit code is 2 for a mistake in the options."""
    options = parser().parse_args(argv)
    try:
        line = json.dumps(report_of(options)) + "\n"
    except NanochatError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_ERROR
    if options.out:
        Path(options.out).write_text(line, encoding="utf-8")
    sys.stdout.write(line)
    return 0


if __name__ == "__main__":
    configure_logging()
    sys.exit(main(sys.argv[1:]))
