"""The command that makes repeats of a model: its run again, under other seeds."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from flows.parameters import FROM_PRESET, RunParameters
from nanochat_core.artifacts.records import Runs
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Manifest
from nanochat_core.errors import DamagedFileError

SEED = "pretrain.seed"
NEW_SEEDS = 3
STATIONS = ("shards", "tokenizer", "tokens", "benchmarks", "pretrain", "base_eval")
"""Whose settings a repeat has, too; those of later stations say nothing of a base model."""


def repeat_command(store: ArtifactStore, repeats: Sequence[Manifest], place: str) -> str:
    """`nanochat run sweep ...` with seeds that are new; '' without a record of the run.

    `place` is what --store would say; "" for the store that is used without it.
    """
    parameters = _parameters(store, repeats[0])
    if parameters is None:
        return ""
    used = {manifest.recipe.get("seed") for manifest in repeats}
    seeds = [seed for seed in range(1, NEW_SEEDS + len(used) + 1) if seed not in used][:NEW_SEEDS]
    words = ["nanochat", "run", "sweep", *_options(parameters, place)]
    words += ["--set", f"{SEED}={','.join(map(str, seeds))}"]
    return shlex.join(words)


def _parameters(store: ArtifactStore, manifest: Manifest) -> RunParameters | None:
    run = manifest.provenance.get("run")
    try:
        record = Runs(store.files).read(run) if isinstance(run, str) and run else None
        return None if record is None else RunParameters.model_validate(record["parameters"])
    except (DamagedFileError, ValidationError, KeyError):
        return None


def _options(parameters: RunParameters, place: str) -> list[str]:
    words = ["--preset", parameters.preset]
    for option, value in (
        ("--depth", "" if parameters.depth == FROM_PRESET else str(parameters.depth)),
        ("--store", place),
        ("--upstream", parameters.upstream),
        ("--benchmarks", parameters.benchmarks),
    ):
        words += [option, value] if value else []
    for option, values in (("--source", parameters.source), ("--mirror", parameters.mirrors)):
        words += [word for value in values for word in (option, value)]
    words += ["--offline"] if parameters.offline else []
    return words + _settings(parameters)


def _settings(parameters: RunParameters) -> list[str]:
    found: Mapping[str, Any] = {
        name: value
        for name, value in parameters.overrides.items()
        if name != SEED and name.partition(".")[0] in STATIONS
    }
    dtype = parameters.compute_dtype
    if dtype != FROM_PRESET:
        own = {f"{name}.compute_dtype": dtype for name in ("pretrain", "base_eval")}
        found = {**own, **found}
    return [word for name, value in found.items() for word in ("--set", f"{name}={_text(value)}")]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
