"""What a chat model is asked: its benchmarks, and what tells their problems from others.

Torch-free.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nanochat_core.benchmarks.base import Benchmark
from nanochat_core.benchmarks.files import expected_files, file_of
from nanochat_core.benchmarks.names import FROM_FILES, BenchmarkName
from nanochat_core.benchmarks.open import open_benchmark
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.errors import ConfigError, DataError
from nanochat_core.evals.recipes import ChatEvalRecipe
from nanochat_core.sandbox.execution import Sandbox

log = logging.getLogger(__name__)

BENCHMARKS_INPUT = "benchmarks"
MODEL_INPUTS = ("rl", "sft", "pretrain")
"""Stations whose model is evaluated: the first that is among the inputs."""


def model_input(inputs: Mapping[str, str]) -> str:
    """Which of the inputs is the model that is evaluated."""
    for name in MODEL_INPUTS:
        if name in inputs:
            return name
    raise ConfigError(
        f"the inputs {', '.join(sorted(inputs))} hold no model; expected one of "
        f"{', '.join(MODEL_INPUTS)}"
    )


def check_rows_given(recipe: ChatEvalRecipe, inputs: Mapping[str, str]) -> None:
    """Refuse benchmarks whose rows are nowhere, before anything is loaded."""
    read = [name for name in recipe.benchmarks if name in FROM_FILES]
    if read and BENCHMARKS_INPUT not in inputs:
        files = "; ".join(" or ".join(expected_files(name, "test")) for name in read)
        raise ConfigError(
            f"{', '.join(read)} are read from files, and this evaluation has no input "
            f"`{BENCHMARKS_INPUT}`; give a folder that holds {files}"
        )


def asked_benchmarks(recipe: ChatEvalRecipe) -> list[BenchmarkName]:
    """Those of which any problems are wanted, in order; ConfigError when there are none."""
    asked = [name for name in recipe.benchmarks if recipe.count(name) != 0]
    if not asked:
        raise ConfigError(f"0 problems of {', '.join(recipe.benchmarks)} are asked; ask for more")
    return asked


def open_benchmarks(
    names: Sequence[BenchmarkName],
    recipe: ChatEvalRecipe,
    *,
    folder: Path | None,
    config: Mapping[str, Any],
    allow_weak_sandbox: bool,
) -> list[Benchmark]:
    """Benchmarks ready to be asked; `folder` holds their files, `config` is that of the model."""
    sandbox = None
    if "humaneval" in names:
        sandbox = Sandbox.open(allow_weak=allow_weak_sandbox)
        log.info("the code of replies runs in the sandbox %s", sandbox.tier)
    facts = model_facts(config) if "identity" in names else None
    return [_opened(name, recipe, folder, facts, sandbox) for name in names]


def model_facts(config: Mapping[str, Any]) -> ModelFacts:
    """What the model was taught about itself, as its own files say."""
    try:
        return ModelFacts.model_validate(config["facts"])
    except (KeyError, ValidationError) as error:
        raise DataError(
            f"config.json of the chat model has no usable `facts` ({error}); evaluate a model "
            "that the station sft made, or leave the benchmark identity out"
        ) from error


def problems_digest(
    name: BenchmarkName, recipe: ChatEvalRecipe, folder: Path | None, config: Mapping[str, Any]
) -> str:
    """Sha256 of what is asked: the file of the rows, or every problem that is made.

    How many rows of a file are kept is not in it. Raises DataError or ConfigError where nothing
    can be asked.
    """
    if name in FROM_FILES:
        with file_of(folder, name, "test").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    facts = model_facts(config) if name == "identity" else None
    benchmark = _opened(name, recipe, folder, facts, None)
    problems = [
        benchmark.conversation(index).model_dump(mode="json") for index in range(len(benchmark))
    ]
    return hashlib.sha256(json.dumps(problems).encode()).hexdigest()


def _opened(
    name: BenchmarkName,
    recipe: ChatEvalRecipe,
    folder: Path | None,
    facts: ModelFacts | None,
    sandbox: Sandbox | None,
) -> Benchmark:
    return open_benchmark(
        name,
        "test",
        folder=folder,
        count=recipe.count(name) or 0,
        seed=recipe.seed,
        facts=facts,
        sandbox=sandbox,
    )
