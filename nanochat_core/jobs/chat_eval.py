"""Evaluate a chat model as a torchrun job: benchmarks, answered by letter or in words."""

import logging
from pathlib import Path
from typing import Any

from nanochat_core.benchmarks.base import Benchmark
from nanochat_core.benchmarks.names import BenchmarkName
from nanochat_core.config.job import PROGRESS_FILE, JobSpec
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.evals import chat_problems
from nanochat_core.evals.chat import evaluate_chat
from nanochat_core.evals.chat_problems import BENCHMARKS_INPUT
from nanochat_core.evals.chat_results import BenchmarkResult, ChatResult
from nanochat_core.evals.kept_scores import KeptScores
from nanochat_core.evals.progress import EvalProgress
from nanochat_core.evals.recipes import ChatEvalRecipe
from nanochat_core.evals.result_files import write_chat_eval
from nanochat_core.inference.engine import EngineSettings, InferenceEngine
from nanochat_core.inference.loading import load_pair
from nanochat_core.jobs.common import StopRequest, run_job_main
from nanochat_core.jobs.device_rows import DeviceRows, evaluated_rows, rows_of
from nanochat_core.jobs.hardware import describe_hardware
from nanochat_core.training.precision import resolve_compute_dtype

log = logging.getLogger(__name__)

CACHED_FACTOR = 4
"""A cached token takes a tenth or less of what a token of a training step does."""


def main(spec: JobSpec, ranks: Ranks, stop: StopRequest) -> None:
    """Ask every problem, shared among the ranks; the first writes the files of the artifact."""
    recipe = ChatEvalRecipe.model_validate(spec.recipe)
    chat_problems.check_rows_given(recipe, spec.inputs)
    names = chat_problems.asked_benchmarks(recipe)
    scores = KeptScores.of(spec.inputs)
    known = scores.known_benchmarks(names)
    if known:
        log.info("%s known already", ", ".join(known))
    dtype = resolve_compute_dtype(recipe.compute_dtype, ranks.device)
    folders = model_folder(spec), spec.input("tokenizer")
    device_rows = DeviceRows(spec, ranks)

    def keep(result: BenchmarkResult) -> None:
        if ranks.is_main:
            scores.keep(result.name, result.record(), result.summary())

    with device_rows.told():
        model, config, tokenizer = load_pair(*folders, ranks.device, dtype)
        left = [name for name in names if name not in known]
        benchmarks = open_benchmarks(spec, recipe, left, config)
        path = Path(spec.work_folder) / PROGRESS_FILE if ranks.is_main else None
        # What one rank does, near enough for a progress bar.
        total = sum(map(len, benchmarks)) // ranks.world_size
        progress = EvalProgress(path, total, stop)
        settled = device_rows.settle(lambda: evaluated_rows(spec.execution, ranks.device))
        batch_tokens = rows_of(settled) * model.config.sequence_len
        cached = EngineSettings(cache_tokens=CACHED_FACTOR * batch_tokens)
        asked = evaluate_chat(
            InferenceEngine(model, tokenizer, cached),
            benchmarks,
            ranks,
            batch_tokens=batch_tokens,
            max_new_tokens=recipe.max_new_tokens,
            on_progress=progress.update,
            on_benchmark=keep,
        )
    if ranks.is_main:
        found = known | {result.name: result for result in asked.benchmarks}
        result = ChatResult(tuple(found[name] for name in names))
        provenance = describe_hardware(ranks, model.compute_dtype)
        publish(spec, result, provenance | {"known_scores": sorted(known)})
        progress.finish()


def model_folder(spec: JobSpec) -> Path:
    """The folder of the model that is evaluated."""
    return spec.input(chat_problems.model_input(spec.inputs))


def open_benchmarks(
    spec: JobSpec, recipe: ChatEvalRecipe, names: list[BenchmarkName], config: dict[str, Any]
) -> list[Benchmark]:
    """What is asked, in order."""
    return chat_problems.open_benchmarks(
        names,
        recipe,
        folder=spec.input(BENCHMARKS_INPUT) if BENCHMARKS_INPUT in spec.inputs else None,
        config=config,
        allow_weak_sandbox=spec.execution.allow_weak_sandbox,
    )


def publish(spec: JobSpec, result: ChatResult, provenance: dict[str, Any]) -> None:
    """Write scores and answers, and `outputs.json` last."""
    output = Path(spec.output_folder)
    log.info("scores: %s", result.metrics())
    written = write_chat_eval(output, result)
    written.model_copy(update={"provenance": provenance}).save(output)


if __name__ == "__main__":
    run_job_main(main)
