"""Station `pretrain`: a base model, trained on the token files by torchrun."""

import logging

from nanochat_core.config.job import StageOutput
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.trunk import TRUNK_INPUT
from tasks.beginnings import find_trunk, request_of_trunk
from tasks.kernel_cache import shared_kernels
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 1


@stage("pretrain", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def pretrain(work: StageWork) -> StageOutput:
    """Train a base model; a lost job goes on from its last checkpoint.

    The first steps are taken from a run that has them in common, if the store has one.
    """
    recipe = PretrainRecipe.model_validate(work.recipe.model_dump())
    trunk = find_trunk(work, recipe, CODE_VERSION)
    if trunk is not None:
        shared = f"{trunk.ref.short} has the first {trunk.steps:,} steps of this run"
        work.report.log(logging.INFO, shared)
    more = {} if trunk is None else {TRUNK_INPUT: trunk.folder}
    with shared_kernels(work.call.run.store, work.execution, work.report.log):
        output = work.run_job("nanochat_core.jobs.pretrain", more)
    return _with_origin(output, work, recipe)


def _with_origin(output: StageOutput, work: StageWork, recipe: PretrainRecipe) -> StageOutput:
    """The output with the artifact that its first steps are from, if it did not train them."""
    steps = output.provenance.get("started_from_step", 0)
    if not steps:
        return output
    # The job knows no store, and after a resume the trunk may be gone: its name follows from ours.
    asked = request_of_trunk(work, recipe, CODE_VERSION, steps)
    origin = {"started_from": f"{asked.station}/{asked.fingerprint}"}
    return output.model_copy(update={"provenance": {**output.provenance, **origin}})
