"""Speed of the in-context tasks (CORE), as one line of JSON.

A trained model answers the tasks of a bundle as the station base_eval and `nanochat eval core` let
it; the time of a task covers its files, its prompts and its scores.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from nanochat_core.bench.core_padded import Scores, ask_padded
from nanochat_core.bench.infer_setup import loaded
from nanochat_core.bench.train_measuring import PeakMemory, device_name
from nanochat_core.distributed.ranks import Ranks, pick_device
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.evals.bundle import Bundle, read_bundle
from nanochat_core.evals.core import evaluate_core
from nanochat_core.evals.core_results import CoreResult, TaskResult, predicted_option
from nanochat_core.logs import configure_logging
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.precision import DTYPES, resolve_compute_dtype

PADDED = "padded"
NAMED = 20
EXIT_ERROR, EXIT_CONFIG = 1, 2
EPILOG = """\
figures:
  seconds, examples_per_second  of all tasks, as medians of the rounds; of each task below `tasks`
  score, score_stderr           what came out

with --against padded, one padded batch an example (the reference's way), in turn:
  ratio_median, ratio_min       how many times as long that takes, of the rounds
  differing                     examples that the two answer differently, with how close the best
                                two options are (mean loss in nats): ties but for rounding

examples:
  nanochat bench core --model FOLDER --tokenizer FOLDER --bundle eval_bundle
  nanochat bench core --model FOLDER --tokenizer FOLDER --bundle eval_bundle --against padded

on an H100, all of CORE with a d24 base model:
  nanochat bench core --model FOLDER --tokenizer FOLDER --bundle eval_bundle --max-per-task 500 \\
    --batch-tokens 65536 --against padded --rounds 1
"""


@dataclass(frozen=True)
class Subject:
    """Who is asked, and what."""

    model: GPT
    tokenizer: Tokenizer
    bundle: Bundle
    max_per_task: int
    batch_tokens: int

    def ask(self) -> tuple[list[float], CoreResult]:
        """Seconds of each task, and the result of all."""
        moments = [time.perf_counter()]
        result = evaluate_core(
            self.model,
            self.tokenizer,
            self.bundle,
            Ranks.single(),
            max_per_task=self.max_per_task,
            batch_tokens=self.batch_tokens,
            on_task=lambda _: moments.append(time.perf_counter()),
        )
        return [after - before for before, after in pairwise(moments)], result

    def ask_padded(self) -> list[tuple[float, Scores]]:
        """The same by one padded batch an example."""
        return ask_padded(self.model, self.tokenizer, self.bundle, self.max_per_task)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="nanochat bench core",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    asked = made.add_argument_group("what is asked")
    asked.add_argument(
        "--model", metavar="FOLDER", type=Path, required=True, help="of a base model"
    )
    asked.add_argument("--tokenizer", metavar="FOLDER", type=Path, help="default: tokenizer in it")
    asked.add_argument(
        "--bundle", metavar="FOLDER", type=Path, required=True, help="with core.yaml"
    )
    asked.add_argument("--tasks", metavar="LABELS", help="some of them, as arc_easy,copa")
    asked.add_argument("--max-per-task", type=int, default=100, help="default 100; 0: all")
    asked.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="default auto")
    run = made.add_argument_group("how it is measured")
    run.add_argument("--batch-tokens", type=int, default=2048, help="of a pass, default 2048")
    run.add_argument("--device", default="auto", help="auto, cuda, mps, cpu")
    run.add_argument("--threads", type=int, default=1, help="CPU threads, default 1")
    run.add_argument("--rounds", type=int, default=3, help="of everything, default 3")
    run.add_argument("--against", choices=(PADDED,), help="another way to do the same, in turn")
    run.add_argument("--out", metavar="FILE", help="write the line here, too")
    return made


def subject_of(options: argparse.Namespace) -> Subject:
    """The model and its tasks."""
    for name in ("rounds", "threads", "batch_tokens"):
        if getattr(options, name) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} {getattr(options, name)}; give 1 or more"
            )
    bundle = read_bundle(options.bundle)
    if options.tasks is not None:
        bundle = chosen(bundle, options.tasks.split(","))
    device = pick_device(options.device)
    dtype = resolve_compute_dtype(options.dtype, device)
    model, tokenizer = loaded(options.model, options.tokenizer, device, dtype)
    return Subject(model, tokenizer, bundle, options.max_per_task, options.batch_tokens)


def chosen(bundle: Bundle, labels: Sequence[str]) -> Bundle:
    """Some tasks of a bundle; ConfigError for a label that it does not have."""
    tasks = {task.label: task for task in bundle.tasks}
    if unknown := [label for label in labels if label not in tasks]:
        raise ConfigError(f"--tasks {','.join(unknown)}: the bundle has {', '.join(tasks)}")
    return Bundle(tuple(tasks[label] for label in labels))


def report_of(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for in this process."""
    torch.set_num_threads(options.threads)
    memory = PeakMemory(pick_device(options.device))
    subject = subject_of(options)
    # Kernels are loaded, and memory is there.
    warm = Subject(subject.model, subject.tokenizer, subject.bundle, 12, subject.batch_tokens)
    warm.ask()
    report = measure(subject, options.rounds, options.against == PADDED)
    return {
        **report,
        "peak_memory_bytes": memory.bytes,
        "peak_memory_is": memory.meaning,
        **describe(subject, options),
    }


def measure(subject: Subject, num_rounds: int, is_compared: bool) -> dict[str, Any]:
    """Rounds of one way, or of both in turn."""
    own, other = [], []
    for _ in range(num_rounds):
        own.append(subject.ask())
        if is_compared:
            other.append(subject.ask_padded())
    result = own[-1][1]
    seconds = [seconds for seconds, _ in own]
    against = [[task_seconds for task_seconds, _ in found] for found in other]
    num_examples = [len(task.examples) for task in result.tasks]
    whole = speeds(list(map(sum, seconds)), list(map(sum, against)), sum(num_examples))
    tasks = [
        {"task": task.task.label, "type": task.task.task_type, "shots": task.task.num_fewshot}
        | speeds([s[i] for s in seconds], [s[i] for s in against], num_examples[i])
        for i, task in enumerate(result.tasks)
    ]
    compared: dict[str, Any] = {}
    if is_compared:
        pairs = zip(result.tasks, other[-1], strict=True)
        differing = [line for task, (_, scores) in pairs for line in differences(task, scores)]
        compared = {"num_differing": len(differing), "differing": differing[:NAMED]}
    scores = {"score": round(result.score, 6), "score_stderr": round(result.score_stderr, 6)}
    return {**({"against": PADDED} if is_compared else {}), **whole, **scores, **compared,
            "tasks": tasks}  # fmt: skip


def speeds(seconds: list[float], against: list[float], num_examples: int) -> dict[str, Any]:
    """Medians of the rounds, and ratios if there is something to compare with."""
    median = statistics.median(seconds)
    found: dict[str, Any] = {
        "examples": num_examples,
        "seconds": round(median, 4),
        "examples_per_second": round(num_examples / median, 2),
    }
    if against:
        ratios = [theirs / ours for ours, theirs in zip(seconds, against, strict=True)]
        found["against_seconds"] = round(statistics.median(against), 4)
        found["ratio_median"] = round(statistics.median(ratios), 3)
        found["ratio_min"] = round(min(ratios), 3)
    return found


def differences(result: TaskResult, others: Scores) -> list[dict[str, Any]]:
    """Examples that other scores judge differently, and how near their best options are."""
    return [
        {
            "task": result.task.label,
            "source_row": example.source_row,
            "predicted": example.predicted,
            "against_predicted": picked,
            "margin": margin(scores),
        }
        for example, scores in zip(result.examples, others, strict=True)
        if (picked := predicted_option(result.task.task_type, scores)) != example.predicted
    ]


def margin(scores: Sequence[float]) -> float | None:
    """How much worse the second best option is; None if there is none that could be scored."""
    best = sorted(score for score in scores if math.isfinite(score))
    return None if len(best) < 2 else float(f"{best[1] - best[0]:.3g}")


def describe(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that tells this run from others."""
    model, config = subject.model, subject.model.config
    return {
        "max_per_task": subject.max_per_task,
        "batch_tokens": subject.batch_tokens,
        "rounds": options.rounds,
        "depth": config.n_layer,
        "width": config.n_embd,
        "sequence_len": config.sequence_len,
        "vocab_size": config.vocab_size,
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
