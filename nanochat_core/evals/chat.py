"""Benchmarks put to a chat model: who asks what, and whose answers are known already."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from nanochat_core.benchmarks.base import Benchmark
from nanochat_core.benchmarks.identity import Identity
from nanochat_core.distributed.collectives import gather_texts
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.evals.chat_answers import Answer, answer_problems
from nanochat_core.evals.chat_results import BenchmarkResult, ChatResult, ProblemResult
from nanochat_core.inference.engine import InferenceEngine

OnProgress = Callable[[int, str], None]
"""Told how many problems this rank has done in all, and the benchmark it is at."""
OnBenchmark = Callable[[BenchmarkResult], None]
"""Told of each benchmark as soon as it was asked to its end, on every rank."""


def evaluate_chat(
    engine: InferenceEngine,
    benchmarks: Sequence[Benchmark],
    ranks: Ranks,
    *,
    batch_tokens: int,
    max_new_tokens: int,
    on_progress: OnProgress = lambda *_: None,
    on_benchmark: OnBenchmark = lambda _: None,
) -> ChatResult:
    """Put every problem of the benchmarks to a model; every rank gets the whole result.

    Each rank answers every `world_size`-th problem. `batch_tokens` bounds a batch and does not
    change what is asked.
    """
    results, num_done = list[BenchmarkResult](), 0
    for benchmark in benchmarks:
        own = range(ranks.rank, len(benchmark), ranks.world_size)

        def on_done(count: int, name: str = benchmark.name, before: int = num_done) -> None:
            on_progress(before + count, name)

        answers = answer_problems(
            engine,
            benchmark,
            own,
            batch_tokens=batch_tokens,
            max_new_tokens=max_new_tokens,
            on_done=on_done,
        )
        results.append(_gather(benchmark, answers, ranks))
        on_benchmark(results[-1])
        num_done += len(own)
    return ChatResult(tuple(results))


def _gather(benchmark: Benchmark, own: Sequence[Answer], ranks: Ranks) -> BenchmarkResult:
    """Put the answers of all ranks together, in the order of the problems."""
    texts = gather_texts(json.dumps([asdict(answer) for answer in own]), ranks)
    answers = [Answer(**values) for text in texts for values in json.loads(text)]
    answers.sort(key=lambda answer: answer.index)
    problems = tuple(map(partial(_problem_result, benchmark), answers))
    return BenchmarkResult(benchmark.name, benchmark.baseline, problems)


def _problem_result(benchmark: Benchmark, answer: Answer) -> ProblemResult:
    question, reference = benchmark.conversation(answer.index).messages
    return ProblemResult(
        benchmark=benchmark.name,
        index=answer.index,
        kind=_kind(benchmark, answer.index),
        question=question.text,
        reply=answer.reply,
        reference=reference.text,
        score=answer.score,
        is_cropped=answer.is_cropped,
    )


def _kind(benchmark: Benchmark, index: int) -> str:
    return benchmark.kind(index) if isinstance(benchmark, Identity) else benchmark.name
