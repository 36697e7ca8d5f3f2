"""What a command by hand asks for: its recipe and execution, from preset, flags and --set."""

import importlib.metadata
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from flows import checks
from flows.by_hand.flags import Flag, Translation, translate
from flows.by_hand.inputs import Inputs
from flows.overrides import changed, one_of, parse_assignments
from flows.presets import PRESETS, Executions, Preset
from nanochat_core.artifacts.location import default_store_url
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.config.base import ComputeDtype, Recipe
from nanochat_core.config.execution import Execution, Tracker
from nanochat_core.data.recipes import HarvestSource
from nanochat_core.errors import ConfigError
from nanochat_core.inference.by_hand import by_hand_base
from nanochat_core.training.dial import check_device_batch
from tasks.tracking import check_tracker

DTYPE_VARIABLE = "NANOCHAT_DTYPE"
NO_PRESET, NO_RUN = "none", "dummy"
REFERENCE_EXECUTIONS: dict[str, dict[str, int]] = {
    "pretrain": {"core_metric_every": 2_000, "sample_every": 2_000},
    "rl": {"eval_every": 60, "checkpoint_every": 60},
}
"""What the reference does unless told otherwise."""


@dataclass(frozen=True)
class Request:
    """The flags of one command as they were given, and where it runs."""

    station: str
    flags: Sequence[Flag]
    values: Mapping[str, Any]
    environ: Mapping[str, str]
    torchrun_ranks: int | None = None
    """Processes that torchrun has already started, of which this is one; None: it starts them."""


@dataclass(frozen=True)
class Asked:
    """Everything that the flags mean, before inputs are looked up."""

    request: Request
    found: Translation
    recipe: Any
    execution: Execution
    preset: Preset
    inputs: Inputs
    base: Path

    def option(self, name: str) -> str:
        """A flag that the command deals with itself; '' when it is not given."""
        return str(self.found.options.get(name, ""))

    @property
    def has_own_batch(self) -> bool:
        """Whether somebody has chosen the rows of a micro-batch."""
        return "device_batch_size" in self.found.execution

    def with_recipe(self, **fields: Any) -> Recipe:
        """The recipe with fields that depend on inputs (dots as double underscores)."""
        changes = {name.replace("__", "."): value for name, value in fields.items()}
        recipe: Recipe = changed(self.recipe, self.request.station, changes)
        return recipe


def ask(request: Request) -> Asked:
    """Recipe, execution and places; ConfigError or UnknownNameError names the flag or field."""
    found = translate(request.flags, request.values)
    preset_name = str(found.options.get("preset", NO_PRESET))
    preset = _preset(preset_name)
    _take_assignments(request, found, preset)
    _settle_horizon(found)
    _take_environment(request, found, preset)
    _take_tracking(request, found)
    _take_ranks(request, found)
    recipe, execution = _numbers(preset, preset_name, request.station)
    recipe = changed(recipe, request.station, found.recipe)
    execution = changed(execution, request.station, found.execution)
    _check_machine(request.station, preset, execution)
    environ = request.environ
    store_url = str(found.options.get("store", "")) or default_store_url(environ)
    output = found.options.get("output")
    base = Path(output).expanduser().absolute() if output else by_hand_base(environ)
    inputs = Inputs(ArtifactStore(store_url), base)
    return Asked(request, found, recipe, execution, preset, inputs, base)


def fit_batch(asked: Asked, rows_per_step: int) -> Execution:
    """The execution with whole micro-batches: fewer rows than by default, never than asked for."""
    execution = asked.execution
    rows, ranks = execution.device_batch_size, checks.world_size(execution)
    if rows != "auto" and not asked.has_own_batch and rows_per_step % ranks == 0:
        rows = math.gcd(rows, rows_per_step // ranks)
        execution = execution.model_copy(update={"device_batch_size": rows})
    check_device_batch(rows_per_step, rows, ranks)
    return execution


def _preset(name: str) -> Preset:
    one_of("preset", name, [NO_PRESET, *PRESETS])
    # By hand nothing is harvested; a preset's numbers do not depend on its text.
    return PRESETS["demo" if name == NO_PRESET else name](HarvestSource(versions={}, python=""))


def _numbers(preset: Preset, name: str, station: str) -> tuple[Recipe, Execution]:
    recipe = getattr(preset.recipes, _place(station))
    if name != NO_PRESET:
        return recipe, getattr(preset.executions, _place(station))
    return type(recipe)(), Execution(**REFERENCE_EXECUTIONS.get(station, {}))


def _place(station: str) -> str:
    return "chat_eval_sft" if station == "chat_eval" else station


def _take_assignments(request: Request, found: Translation, preset: Preset) -> None:
    fields = type(getattr(preset.recipes, _place(request.station))).model_fields
    for name, value in parse_assignments(found.options.get("set", ())).items():
        own = name.removeprefix(f"{request.station}.")
        first = own.partition(".")[0]
        is_execution = first not in fields and first in Execution.model_fields
        target = found.execution if is_execution else found.recipe
        if own in target:
            raise ConfigError(f"--set {name}={value}: a flag gives this, too; give one of them")
        target[own] = value


def _settle_horizon(found: Translation) -> None:
    """A horizon that is given by flag replaces that of a preset; -1 leaves the others."""
    recipe = found.recipe
    if recipe.get("target_param_data_ratio") == "auto":
        if {recipe.get("num_iterations", "auto"), recipe.get("target_flops", "auto")} == {"auto"}:
            raise ConfigError(
                "--target-param-data-ratio=-1 leaves the number of steps open; give "
                "--num-iterations or --target-flops"
            )
        del recipe["target_param_data_ratio"]
    if "target_param_data_ratio" in recipe or recipe.get("target_flops", "auto") != "auto":
        recipe.setdefault("num_iterations", "auto")


def _take_environment(request: Request, found: Translation, preset: Preset) -> None:
    dtype = request.environ.get(DTYPE_VARIABLE, "")
    fields = type(getattr(preset.recipes, _place(request.station))).model_fields
    if dtype and "compute_dtype" in fields:
        one_of(f"compute dtype (in {DTYPE_VARIABLE})", dtype, get_args(ComputeDtype))
        found.recipe.setdefault("compute_dtype", dtype)


def _take_tracking(request: Request, found: Translation) -> None:
    run, tracker = found.options.get("run", ""), found.options.get("tracker", "none")
    one_of("tracker", tracker, get_args(Tracker))
    if run == NO_RUN or (not run and tracker == "none"):
        return
    chosen = "wandb" if tracker == "none" else tracker
    found.execution |= {"tracker": chosen, "tracker_run": run or request.station}


def _take_ranks(request: Request, found: Translation) -> None:
    given = found.options.get("nproc_per_node")
    if request.torchrun_ranks is not None:
        if given is not None:
            raise ConfigError("torchrun has started the processes already; drop --nproc-per-node")
        found.execution["ranks"] = request.torchrun_ranks
    elif given is not None:
        found.execution["ranks"] = given


def _check_machine(station: str, preset: Preset, execution: Execution) -> None:
    check_tracker(execution.tracker)
    torch_version = importlib.metadata.version("torch")
    reason = checks.missing_device(
        execution.device, platform=sys.platform, torch_version=torch_version
    )
    if reason:
        raise ConfigError(f"--device-type={execution.device}, but {reason}; leave the flag away")
    if station in checks.TRAINING_STATIONS:
        eager = Execution(compile=False)
        stations = {**dict.fromkeys(checks.TRAINING_STATIONS, eager), station: execution}
        executions = Executions.model_validate(stations)
        checks.check_compiler(preset.model_copy(update={"executions": executions}))
