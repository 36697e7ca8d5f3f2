"""What can be known to fail before any work: refused here, with the remedy. Torch-free."""

import importlib.metadata
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import which

from pydantic import ValidationError

from flows.overrides import config_error
from flows.presets import MAKING_STATIONS, Preset
from nanochat_core.benchmarks.base import Split
from nanochat_core.benchmarks.files import expected_files
from nanochat_core.benchmarks.names import FROM_FILES
from nanochat_core.config.execution import Execution
from nanochat_core.errors import BatchSizeError, ConfigError
from nanochat_core.sandbox.execution import Sandbox
from nanochat_core.training.dial import (
    TrainingPlan,
    check_device_batch,
    extrapolation_warning,
    plan_training,
)
from tasks.launches import check_nodes
from tasks.tracking import check_tracker

Finder = Callable[[str], str | None]

TRAINING_STATIONS = ("pretrain", "sft", "rl")
GPU_NODES = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")
"""Device files of NVIDIA, Jetson, AMD and the Windows subsystem for Linux."""


def plan(preset: Preset) -> TrainingPlan:
    """The dial's numbers, with every batch known to divide."""
    recipe = preset.recipes.pretrain
    try:
        planned = plan_training(recipe, preset.recipes.tokenizer.vocab_size)
    except ValidationError as error:
        raise config_error("pretrain", error) from error
    for station in ("pretrain", "sft"):
        execution: Execution = getattr(preset.executions, station)
        try:
            check_device_batch(
                planned.rows_per_step, execution.device_batch_size, world_size(execution)
            )
        except ConfigError as error:
            raise type(error)(f"{station}: {error}") from error
    check_questions(preset)
    return planned


def world_size(execution: Execution) -> int:
    """Ranks of all machines."""
    return execution.ranks * execution.nodes


def check_questions(preset: Preset) -> None:
    """Refuse a number of ranks that does not share out the questions of a step evenly."""
    execution, questions = preset.executions.rl, preset.recipes.rl.questions_per_step
    ranks = world_size(execution)
    if questions % ranks:
        given = f"rl.ranks={execution.ranks}"
        if execution.nodes > 1:
            given += f" times rl.nodes={execution.nodes}"
        raise BatchSizeError(
            f"rl.questions_per_step={questions} is not a multiple of {given}; use "
            f"{-(-questions // ranks) * ranks} questions, or a number of ranks that divides"
        )


def warnings(preset: Preset, planned: TrainingPlan) -> tuple[str, ...]:
    """What may well be meant, but should be said."""
    warning = extrapolation_warning(preset.recipes.pretrain, planned)
    return (warning,) if warning else ()


def check_devices(preset: Preset) -> None:
    """Refuse a device that this machine cannot have, before text is read for it."""
    torch_version = importlib.metadata.version("torch")
    for station in MAKING_STATIONS:
        device = getattr(preset.executions, station).device
        reason = missing_device(device, platform=sys.platform, torch_version=torch_version)
        if reason:
            raise ConfigError(
                f"{station}.device={device}, but {reason}; use --set {station}.device=auto"
            )


def check_machines(preset: Preset) -> None:
    """Refuse several machines that could not find each other."""
    for station in MAKING_STATIONS:
        check_nodes(station, getattr(preset.executions, station))


def check_benchmarks(preset: Preset, stations: Sequence[str]) -> None:
    """Refuse a station that needs rows of a benchmark whose file is not there."""
    names = {file.name for file in preset.recipes.benchmarks.files}
    needed: list[tuple[str, str, Split]] = []
    for station in ("chat_eval_sft", "chat_eval_rl"):
        asked = getattr(preset.recipes, station).benchmarks
        needed += [(station, name, "test") for name in asked]
    needed += [("rl", preset.recipes.rl.task, split) for split in ("train", "test")]
    for station, name, split in needed:
        files = expected_files(name, split)
        if station in stations and name in FROM_FILES and not names & set(files):
            raise ConfigError(
                f"{station} needs the {split} rows of {name}; put {' or '.join(files)} into a "
                "folder and give it with --benchmarks"
            )


def check_sandbox(preset: Preset, stations: Sequence[str]) -> None:
    """Refuse to run generated code where nothing would hold it back, before a model is trained."""
    for station in ("chat_eval_sft", "chat_eval_rl"):
        runs_code = "humaneval" in getattr(preset.recipes, station).benchmarks
        may_be_weak = getattr(preset.executions, station).allow_weak_sandbox
        if station in stations and runs_code and not may_be_weak:
            Sandbox.open(allow_weak=False)


def check_trackers(preset: Preset) -> None:
    """Refuse a tracker whose package is not installed."""
    for station in TRAINING_STATIONS:
        check_tracker(getattr(preset.executions, station).tracker)


def check_compiler(preset: Preset, *, platform: str = sys.platform, find: Finder = which) -> None:
    """Refuse to compile training where there is nothing to compile with, before text is read."""
    compiled = [s for s in TRAINING_STATIONS if getattr(preset.executions, s).compile]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    has_compiler = any(find(name) for name in ("g++", "c++", "clang++"))
    if not compiled or platform != "linux" or (has_compiler and headers.exists()):
        return
    missing = "no C++ compiler" if not has_compiler else f"no Python headers ({headers})"
    eager = " ".join(f"--set {station}.compile=false" for station in compiled)
    raise ConfigError(
        f"training is compiled, and this machine has {missing}; install g++ and the Python "
        f"headers (Debian: apt-get install g++ python3-dev), or train at a third of the speed "
        f"with {eager}"
    )


def has_gpu() -> bool:
    """Whether this machine has a CUDA GPU that the installed torch may use."""
    torch_version = importlib.metadata.version("torch")
    return not missing_device("cuda", platform=sys.platform, torch_version=torch_version)


def missing_device(
    device: str, *, platform: str, torch_version: str, nodes: Path = Path("/dev")
) -> str:
    """Why a device cannot be there, or '' where it may be: torch alone knows, and only later."""
    if device == "mps" and platform != "darwin":
        return "mps exists on a Mac only"
    if device != "cuda":
        return ""
    if torch_version.endswith("+cpu"):
        return f"the installed torch {torch_version} is built for CPUs only"
    if platform == "darwin":
        return "a Mac has no CUDA GPU"
    if platform == "linux" and not any(any(nodes.glob(name)) for name in GPU_NODES):
        return "this machine shows no GPU"
    return ""
