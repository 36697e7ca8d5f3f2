"""Exporting a model for Hugging Face transformers as a job: written, loaded back, compared."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from nanochat_core.config.job import PROGRESS_FILE, JobSpec, Role, StageOutput
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError, JobStoppedError
from nanochat_core.export.comparing import (
    Comparison,
    OnProgress,
    compare_models,
    load_exported,
    make_prompts,
)
from nanochat_core.export.folder import write_model
from nanochat_core.export.model_card import CardMaterial, write_card
from nanochat_core.export.recipe import ExportRecipe, check_packages, package_versions
from nanochat_core.export.tokenizer_check import compare_tokenizers
from nanochat_core.export.tokenizer_json import write_tokenizer
from nanochat_core.export.weights import round_like
from nanochat_core.inference.loading import load_pair
from nanochat_core.jobs.common import StopRequest, run_job_main
from nanochat_core.jobs.hardware import describe_hardware
from nanochat_core.logs import Progress
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer

log = logging.getLogger(__name__)

TOKENIZER_INPUT = "tokenizer"
CODE_CACHE = "hugging_face"
"""Folder of the work folder where transformers puts the code of the export that it runs."""


def main(spec: JobSpec, ranks: Ranks, stop: StopRequest) -> None:
    """Write the folder and compare it with the model; `outputs.json` only if nothing differs."""
    recipe = ExportRecipe.model_validate(spec.recipe)
    check_packages()
    if not ranks.is_main:
        return
    work, output = Path(spec.work_folder), Path(spec.output_folder)
    material = CardMaterial.load(work)
    use_no_network(work / CODE_CACHE)
    if ranks.device.type == "cuda":
        torch.set_float32_matmul_precision("highest")  # TF32 is further off than the tolerance
    on_progress = watched(Progress(work / PROGRESS_FILE, recipe.prompts, "prompts"), stop)
    folders = model_folder(spec), spec.input(TOKENIZER_INPUT)
    model, _, tokenizer = load_pair(*folders, ranks.device, torch.float32)
    files = write_model(folders[0], tokenizer, output, recipe.dtype)
    files += write_tokenizer(tokenizer, output)
    compared = compare(model, tokenizer, output, recipe, on_progress)
    # The card tells of other artifacts, too, and when they were made: it makes no digest.
    versions = package_versions()
    card = write_card(
        output, material.model_copy(update={"checks": compared, "packages": versions})
    )
    roles: dict[str, Role] = {**dict.fromkeys(files, "result"), card: "record"}
    provenance = describe_hardware(ranks, torch.float32) | versions
    StageOutput(files=roles, metrics=compared, provenance=provenance).save(output)


def model_folder(spec: JobSpec) -> Path:
    """The folder of the model, under whatever name it is given."""
    names = sorted(spec.inputs.keys() - {TOKENIZER_INPUT})
    if len(names) != 1 or TOKENIZER_INPUT not in spec.inputs:
        raise ConfigError(
            f"an export has the inputs {', '.join(sorted(spec.inputs)) or 'none'}; give one model "
            f"and its {TOKENIZER_INPUT}"
        )
    return spec.input(names[0])


def use_no_network(code_cache: Path) -> None:
    """Let transformers ask nobody, and put code that it runs where it is deleted with the job.

    It reads both once, when it is imported first.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # noqa: TID251 - the entry of this process
    os.environ["HF_MODULES_CACHE"] = str(code_cache)  # noqa: TID251


def watched(progress: Progress, stop: StopRequest) -> OnProgress:
    """Record how far the comparison is; a stop request ends it there."""

    def on_progress(done: int, message: str) -> None:
        if stop():
            raise JobStoppedError("stopped on request; an export starts from the beginning again")
        progress.update(done, message)

    return on_progress


def compare(
    model: GPT, tokenizer: Tokenizer, folder: Path, recipe: ExportRecipe, on_progress: OnProgress
) -> dict[str, float | int | str]:
    """Numbers that tell how near the export is to the model; ExportError where it is not."""
    num_strings = compare_tokenizers(tokenizer, folder, recipe.strings)
    on_progress(0, f"{num_strings:,} strings agree")
    round_like(model.eval(), recipe.dtype)
    exported: Any = load_exported(folder, model.device)
    prompts = make_prompts(tokenizer, model.config, recipe.prompts)
    found: Comparison = compare_models(model, exported, prompts, on_progress)
    log.info("the export agrees with the model: %s", found)
    return {
        "prompts": len(prompts),
        "largest_logit_difference": found.largest_difference,
        "greedy_tokens": found.num_tokens,
        "near_ties": found.near_ties,
        "strings": num_strings,
    }


if __name__ == "__main__":
    run_job_main(main)
