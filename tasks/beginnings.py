"""Shared beginnings of pretraining runs: the longest that the store has, for a run to go on from.

A trunk is an ordinary `pretrain` artifact (nanochat_core.training.trunk), so nothing is cached or
named here: it is looked for by what this run would ask for. What is found changes the time that a
run takes, and on like machines nothing of what comes out: the job goes on only from steps that ran
as its own would (`nanochat_core.training.trunk.numerics`, attention, rows of a micro-batch). It is
a help and never a need: whatever is wrong with it, training starts at step 0.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from nanochat_core.artifacts.newest import newest_manifests
from nanochat_core.artifacts.types import ArtifactRef, Manifest, Request
from nanochat_core.errors import ConfigError, StoreError
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.dial import plan_training
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.trunk import STATE_FILE, begins_with, is_horizon_free, trunk_recipe
from tasks.stage import StageWork


@dataclass(frozen=True)
class Trunk:
    """A beginning that was found: its artifact, its steps, and its files on this machine."""

    ref: ArtifactRef
    steps: int
    folder: Path


def find_trunk(work: StageWork, recipe: PretrainRecipe, code_version: int) -> Trunk | None:
    """The longest beginning of this run in the store; None also where none is wanted.

    A forced run takes nothing that was made before. What cannot be had is passed over with a
    warning.
    """
    if not work.execution.share_beginnings or work.call.force or not is_horizon_free(recipe):
        return None
    store = work.call.run.store
    num_steps = _num_steps(work, recipe)
    try:
        published = newest_manifests(store, work.station)
    except (StoreError, OSError) as error:
        work.report.log(logging.WARNING, f"no shared beginning can be looked for: {error}")
        return None
    for steps, ref in _candidates(work, recipe, num_steps, code_version, published):
        try:
            return Trunk(ref, steps, store.materialize(ref))
        except (StoreError, OSError) as error:
            work.report.log(logging.WARNING, f"a shared beginning cannot be used: {error}")
    return None


def request_of_trunk(
    work: StageWork, recipe: PretrainRecipe, code_version: int, steps: int
) -> Request:
    """What the first `steps` steps of this run are asked for as."""
    return Request(
        station=work.station,
        code_version=code_version,
        recipe=trunk_recipe(recipe, steps).model_dump(mode="json"),
        inputs={name: ref.digest for name, ref in work.input_refs.items()},
    )


def _candidates(
    work: StageWork,
    recipe: PretrainRecipe,
    num_steps: int,
    code_version: int,
    published: list[Manifest],
) -> list[tuple[int, ArtifactRef]]:
    """Steps and reference of every beginning of this run in the store, the longest first."""
    inputs = {name: ref.digest for name, ref in work.input_refs.items()}
    found = []
    for manifest in published:
        steps = manifest.recipe.get("num_iterations")
        is_alike = (manifest.code_version, manifest.inputs) == (code_version, inputs)
        if not is_alike or not isinstance(steps, int) or not _has_state(manifest):
            continue
        other = _recipe_of(manifest)
        if other is None or other == recipe:
            continue
        if begins_with(recipe, num_steps, other, steps):
            found.append((steps, manifest.ref))
    return sorted(found, key=lambda each: each[0], reverse=True)


def _recipe_of(manifest: Manifest) -> PretrainRecipe | None:
    """The recipe of an artifact; None for one that is not known here, as of a later checkout."""
    try:
        return PretrainRecipe.model_validate(manifest.recipe)
    except (ValidationError, ConfigError):
        return None


def _has_state(manifest: Manifest) -> bool:
    return any(file.path == STATE_FILE for file in manifest.files)


def _num_steps(work: StageWork, recipe: PretrainRecipe) -> int:
    vocab_size = Tokenizer.load(work.inputs["tokenizer"]).vocab_size
    return plan_training(recipe, vocab_size).num_iterations
