"""Evaluate a chat model as a torchrun job: benchmarks, answered by letter or in words."""

import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nanochat_core.benchmarks.base import Benchmark
from nanochat_core.benchmarks.files import expected_files
from nanochat_core.benchmarks.names import FROM_FILES
from nanochat_core.benchmarks.open import open_benchmark
from nanochat_core.config.job import PROGRESS_FILE, JobSpec, StageOutput
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError, DataError
from nanochat_core.evals.chat import ChatResult, evaluate_chat
from nanochat_core.evals.progress import EvalProgress
from nanochat_core.evals.recipes import ChatEvalRecipe
from nanochat_core.evals.score_table import SCORES_FILE
from nanochat_core.inference.engine import EngineSettings, InferenceEngine
from nanochat_core.inference.loading import load_pair
from nanochat_core.jobs.base_eval import write_json
from nanochat_core.jobs.common import StopRequest, run_job_main
from nanochat_core.jobs.device_rows import DeviceRows, evaluated_rows, rows_of
from nanochat_core.jobs.hardware import describe_hardware
from nanochat_core.sandbox.execution import Sandbox
from nanochat_core.training.precision import resolve_compute_dtype

log = logging.getLogger(__name__)

ANSWERS_FILE = "answers.json"
BENCHMARKS_INPUT = "benchmarks"
MODEL_INPUTS = ("rl", "sft", "pretrain")
"""Stations whose model is evaluated: the first that is among the inputs."""
CACHED_FACTOR = 4
"""A cached token takes a tenth or less of what a token of a training step does."""


def main(spec: JobSpec, ranks: Ranks, stop: StopRequest) -> None:
    """Ask every problem, shared among the ranks; the first writes the files of the artifact."""
    recipe = ChatEvalRecipe.model_validate(spec.recipe)
    check_inputs(spec, recipe)
    dtype = resolve_compute_dtype(recipe.compute_dtype, ranks.device)
    folders = model_folder(spec), spec.input("tokenizer")
    device_rows = DeviceRows(spec, ranks)
    with device_rows.told():
        model, config, tokenizer = load_pair(*folders, ranks.device, dtype)
        benchmarks = open_benchmarks(spec, recipe, config)
        path = Path(spec.work_folder) / PROGRESS_FILE if ranks.is_main else None
        # What one rank does, near enough for a progress bar.
        total = sum(map(len, benchmarks)) // ranks.world_size
        progress = EvalProgress(path, total, stop)
        settled = device_rows.settle(lambda: evaluated_rows(spec.execution, ranks.device))
        batch_tokens = rows_of(settled) * model.config.sequence_len
        cached = EngineSettings(cache_tokens=CACHED_FACTOR * batch_tokens)
        result = evaluate_chat(
            InferenceEngine(model, tokenizer, cached),
            benchmarks,
            ranks,
            batch_tokens=batch_tokens,
            max_new_tokens=recipe.max_new_tokens,
            on_progress=progress.update,
        )
    if ranks.is_main:
        publish(spec, result, describe_hardware(ranks, model.compute_dtype))
        progress.finish()


def check_inputs(spec: JobSpec, recipe: ChatEvalRecipe) -> None:
    """Refuse benchmarks whose rows are nowhere, before anything is loaded."""
    read = [name for name in recipe.benchmarks if name in FROM_FILES]
    if read and BENCHMARKS_INPUT not in spec.inputs:
        files = "; ".join(" or ".join(expected_files(name, "test")) for name in read)
        raise ConfigError(
            f"{', '.join(read)} are read from files, and this evaluation has no input "
            f"`{BENCHMARKS_INPUT}`; give a folder that holds {files}"
        )


def model_folder(spec: JobSpec) -> Path:
    """The folder of the model that is evaluated."""
    for name in MODEL_INPUTS:
        if name in spec.inputs:
            return spec.input(name)
    raise ConfigError(
        f"the inputs {', '.join(sorted(spec.inputs))} hold no model; expected one of "
        f"{', '.join(MODEL_INPUTS)}"
    )


def open_benchmarks(
    spec: JobSpec, recipe: ChatEvalRecipe, config: dict[str, Any]
) -> list[Benchmark]:
    """What is asked, in order; a benchmark of which 0 problems are wanted is left out."""
    asked = [name for name in recipe.benchmarks if recipe.count(name) != 0]
    if not asked:
        raise ConfigError(f"0 problems of {', '.join(recipe.benchmarks)} are asked; ask for more")
    folder = spec.input(BENCHMARKS_INPUT) if BENCHMARKS_INPUT in spec.inputs else None
    sandbox = None
    if "humaneval" in asked:
        sandbox = Sandbox.open(allow_weak=spec.execution.allow_weak_sandbox)
        log.info("the code of replies runs in the sandbox %s", sandbox.tier)
    facts = model_facts(config) if "identity" in asked else None
    return [
        open_benchmark(
            name,
            "test",
            folder=folder,
            count=recipe.count(name) or 0,
            seed=recipe.seed,
            facts=facts,
            sandbox=sandbox,
        )
        for name in asked
    ]


def model_facts(config: dict[str, Any]) -> ModelFacts:
    """What the model was taught about itself, as its own files say."""
    try:
        return ModelFacts.model_validate(config["facts"])
    except (KeyError, ValidationError) as error:
        raise DataError(
            f"config.json of the chat model has no usable `facts` ({error}); evaluate a model "
            "that the station sft made, or leave the benchmark identity out"
        ) from error


def publish(spec: JobSpec, result: ChatResult, provenance: dict[str, Any]) -> None:
    """Write scores and answers, and `outputs.json` last."""
    output = Path(spec.output_folder)
    log.info("scores: %s", result.metrics())
    write_json(output / SCORES_FILE, result.scores())
    write_json(output / ANSWERS_FILE, result.records())
    StageOutput(
        files={SCORES_FILE: "result", ANSWERS_FILE: "result"},
        metrics={**result.metrics()},
        provenance=provenance,
    ).save(output)


if __name__ == "__main__":
    run_job_main(main)
