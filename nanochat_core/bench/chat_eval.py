"""Speed of evaluations whose answers are written: many problems at once against one at a time.

Prints one line of JSON. Without options: a model of two layers and 1,024 tokens with made-up
weights, which is asked sums and words to spell. The two ways take turns; both write and judge, the
second each answer before the next is asked for.
"""

import argparse
import json
import logging
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nanochat_core.bench.infer_setup import loaded, made_up
from nanochat_core.bench.train_measuring import device_name
from nanochat_core.benchmarks.base import GenerativeBenchmark
from nanochat_core.benchmarks.open import open_benchmark
from nanochat_core.distributed.ranks import pick_device
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.evals.chat_answers import reply_request, sorted_prompts, write_replies
from nanochat_core.inference.engine import EngineSettings, GeneratedReply, InferenceEngine
from nanochat_core.inference.requests import Request
from nanochat_core.logs import configure_logging
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.sandbox.execution import Sandbox
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.precision import DTYPES

NEAR = 1e-4
"""Logits that are no further apart (float32) change places with the shape of a batch."""
SPREAD = 0.3
"""Of the noise that makes the made-up model prefer some tokens clearly to others."""
VOCAB_SIZE = 512
WRITTEN = ("sums", "spelling", "gsm8k", "humaneval")
EXIT_ERROR, EXIT_CONFIG = 1, 2
EPILOG = """\
figures of each benchmark:
  ratio_median, ratio_min    how many times as long the same problems take one at a time
  picks                      tokens that were chosen in the batch, each checked against one whole
                             forward pass over prompt and reply
  near_ties                  of those, where the two likeliest are within 1e-4
  other_side                 of those, where the other one was taken
  wrong                      picks that are not the likeliest token, and no near tie: 0 is right

examples:
  nanochat bench chat-eval
  nanochat bench chat-eval --benchmarks gsm8k,humaneval --data FOLDER --rows 32
  nanochat bench chat-eval --model FOLDER --tokenizer FOLDER --benchmarks sums
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="nanochat bench chat-eval",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--benchmarks", default="sums,spelling", help="default sums,spelling")
    made.add_argument(
        "--data", metavar="FOLDER", type=Path, help="with the files of gsm8k and humaneval"
    )
    made.add_argument("--problems", type=int, default=64, help="of each benchmark, default 64")
    made.add_argument("--rows", type=int, default=32, help="problems at once, default 32")
    made.add_argument("--new", type=int, default=512, help="tokens of a reply at most, default 512")
    made.add_argument("--rounds", type=int, default=3, help="of both ways in turn, default 3")
    made.add_argument("--model", metavar="FOLDER", type=Path, help="a trained model instead")
    made.add_argument(
        "--tokenizer", metavar="FOLDER", type=Path, help="of --model; default: tokenizer in it"
    )
    made.add_argument("--sequence-len", type=int, default=1024, help="default 1024")
    made.add_argument("--dtype", default="float32", choices=tuple(DTYPES), help="default float32")
    made.add_argument("--device", default="auto", help="auto, cuda, mps, cpu")
    made.add_argument("--threads", type=int, default=1, help="CPU threads, default 1")
    made.add_argument(
        "--allow-weak-sandbox", action="store_true", help="run code where only limits hold it back"
    )
    made.add_argument("--out", metavar="FILE", help="write the line here, too")
    return made


def report_of(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for in this process."""
    for name in ("problems", "rows", "new", "rounds", "threads"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)}; give 1 or more")
    torch.set_num_threads(options.threads)
    benchmarks = opened(options)
    model, tokenizer = subject_of(options, benchmarks)
    found = {name: compared(model, tokenizer, one, options) for name, one in benchmarks.items()}
    return {
        "benchmarks": found,
        "rows": options.rows,
        "new": options.new,
        "rounds": options.rounds,
        "depth": model.config.n_layer,
        "width": model.config.n_embd,
        "sequence_len": model.config.sequence_len,
        "vocab_size": model.config.vocab_size,
        "dtype": str(model.compute_dtype).removeprefix("torch."),
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def opened(options: argparse.Namespace) -> dict[str, GenerativeBenchmark]:
    """The benchmarks by name, each with the problems that are asked."""
    names = [name.strip() for name in options.benchmarks.split(",")]
    if strange := [name for name in names if name not in WRITTEN]:
        raise ConfigError(f"--benchmarks {strange[0]!r}; give some of {', '.join(WRITTEN)}")
    found = {}
    for name in names:
        sandbox = None
        if name == "humaneval":
            sandbox = Sandbox.open(allow_weak=options.allow_weak_sandbox)
        one = open_benchmark(
            name, "test", folder=options.data, count=options.problems, sandbox=sandbox
        )
        assert isinstance(one, GenerativeBenchmark), f"{name} is answered by a letter"
        found[name] = one
    return found


def subject_of(
    options: argparse.Namespace, benchmarks: Mapping[str, GenerativeBenchmark]
) -> tuple[GPT, Tokenizer]:
    """The model that is asked, and its tokenizer."""
    device, dtype = pick_device(options.device), DTYPES[options.dtype]
    if options.model:
        return loaded(options.model, options.tokenizer, device, dtype)
    if options.tokenizer:
        raise ConfigError("--tokenizer belongs to --model; give both, or neither")
    shape = ModelConfig(
        sequence_len=options.sequence_len,
        vocab_size=VOCAB_SIZE,
        n_layer=2,
        n_head=2,
        n_kv_head=2,
        n_embd=32,
        window_pattern="L",
    )
    model = made_up(shape, device, dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=SPREAD)
    return model, tokenizer_of(benchmarks.values())


def tokenizer_of(benchmarks: Iterable[GenerativeBenchmark]) -> Tokenizer:
    """One that was trained on the problems, so that they are as long as a small model sees them."""
    # Sums alone have too few words.
    spelling = open_benchmark("spelling", "test")
    conversations = (
        benchmark.conversation(index)
        for benchmark in (*benchmarks, spelling)
        for index in range(len(benchmark))
    )
    texts = [message.text for one in conversations for message in one.messages]
    return Tokenizer.train(texts, TokenizerRecipe(vocab_size=VOCAB_SIZE))


def compared(
    model: GPT, tokenizer: Tokenizer, benchmark: GenerativeBenchmark, options: argparse.Namespace
) -> dict[str, Any]:
    """One benchmark asked both ways, and what was said in the batch checked."""
    together, alone = (
        InferenceEngine(model, tokenizer, EngineSettings(num_rows=rows))
        for rows in (options.rows, 1)
    )
    # Before the clock runs: kernels are loaded, memory is there.
    requests, replies = written(together, benchmark, options.new)
    written(alone, benchmark, options.new)
    indices = range(len(benchmark))
    pairs = [
        (
            seconds_of(together, benchmark, [indices], options.new),
            seconds_of(alone, benchmark, [[index] for index in indices], options.new),
        )
        for _ in range(options.rounds)
    ]
    ratios = [theirs / ours for ours, theirs in pairs]
    return {
        "problems": len(benchmark),
        "prompt_tokens": sum(len(request.prompt) for request in requests),
        "reply_tokens": sum(len(reply.tokens) for reply in replies),
        "seconds": round(statistics.median(ours for ours, _ in pairs), 4),
        "against_seconds": round(statistics.median(theirs for _, theirs in pairs), 4),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        **checked(model, requests, replies),
    }


def seconds_of(
    engine: InferenceEngine,
    benchmark: GenerativeBenchmark,
    portions: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> float:
    """The time to write and judge the answers, each portion after the one before."""
    started = time.perf_counter()
    for indices in portions:
        write_replies(engine, benchmark, indices, max_new_tokens=max_new_tokens)
    return time.perf_counter() - started


def written(
    engine: InferenceEngine, benchmark: GenerativeBenchmark, max_new_tokens: int
) -> tuple[list[Request], list[GeneratedReply]]:
    """What was asked and said, in the order of the prompts."""
    prompts = sorted_prompts(engine, benchmark, range(len(benchmark)))
    requests = [reply_request(tokens, max_new_tokens) for _, tokens, _ in prompts]
    replies = dict(engine.replies(requests))
    return requests, [replies[number] for number in range(len(requests))]


def checked(
    model: GPT, requests: Sequence[Request], replies: Sequence[GeneratedReply]
) -> dict[str, int]:
    """Every sampled token against one whole forward pass, without cache, batch and chunks."""
    counts = Counter(picks=0, near_ties=0, other_side=0, wrong=0)
    for request, reply in zip(requests, replies, strict=True):
        ids = torch.tensor([[*request.prompt, *reply.tokens]], device=model.device)
        with torch.inference_mode():
            logits_TV = model(ids)[0, len(request.prompt) - 1 : -1].float().cpu()
        for logits_V, token, is_sampled in zip(
            logits_TV, reply.tokens, reply.is_sampled, strict=True
        ):
            if not is_sampled:
                continue
            first, second = logits_V.topk(2).values.tolist()
            is_near = first - second < NEAR
            is_likeliest = int(logits_V.argmax()) == token
            counts["picks"] += 1
            counts["near_ties"] += is_near
            counts["other_side"] += is_near and not is_likeliest
            counts["wrong"] += not is_near and not is_likeliest
    return dict(counts)


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
    # It tells of every merge that it learns.
    logging.getLogger("rustbpe").setLevel(logging.WARNING)
    sys.exit(main(sys.argv[1:]))
