"""From what a command asks for to the job that does it; a mistake is refused here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.benchmark_sets import reads_files
from flows.by_hand.asking import Asked, Request, ask, fit_batch
from flows.by_hand.flags import check_inherited
from flows.by_hand.folders import RunFolder, RunRecord, flat_fields, newest_step
from flows.by_hand.inputs import Source, folder_identity, tokens_and_tokenizer
from flows.by_hand.tables import TASK_NAMES
from flows.overrides import config_error, one_of
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.benchmarks.files import expected_files
from nanochat_core.benchmarks.names import BENCHMARKS, FROM_FILES
from nanochat_core.config.base import Recipe
from nanochat_core.config.execution import Execution
from nanochat_core.data.token_files import TokenIndex
from nanochat_core.errors import CheckpointError, ConfigError
from nanochat_core.evals.bundle_places import open_bundle
from nanochat_core.evals.looks import TrainingLooks
from nanochat_core.inference.by_hand import check_tag
from nanochat_core.inference.finding import CHAT_STATIONS, MODEL_FILE, FoundModel
from nanochat_core.model.config import ModelConfig
from nanochat_core.training.dial import (
    TrainingPlan,
    extrapolation_warning,
    plan_training,
)


@dataclass(frozen=True)
class Planned:
    """One job, and the folder it belongs to; nothing has been written yet."""

    kind: str
    station: str
    recipe: Recipe
    execution: Execution
    sources: Mapping[str, Source]
    folder: RunFolder
    store: ArtifactStore
    notes: tuple[str, ...]
    lineage: Mapping[str, Source] = field(default_factory=dict)
    looks: TrainingLooks | None = None
    overwrite: bool = False
    resume_step: int = -1
    fresh: bool = False
    """Whether an evaluation asks again what is known."""

    @property
    def is_training(self) -> bool:
        """Whether the job makes a model, which is named, kept and resumed."""
        return self.station in ("pretrain", "sft", "rl")

    @property
    def record(self) -> RunRecord:
        """What tells this run from others. An evaluation bundle changes nothing of a model."""
        compared = {k: v for k, v in self.sources.items() if k in _MAKING[self.station]}
        places = {**self.lineage, **self.sources}
        return RunRecord(
            station=self.station,
            recipe=self.recipe.model_dump(mode="json"),
            inputs={name: source.identity for name, source in compared.items()},
            places={name: str(source.folder) for name, source in places.items()},
        )


PARTS = ("core", "bpb", "sample")
_MAKING: dict[str, tuple[str, ...]] = {
    "pretrain": ("tokens", "tokenizer"),
    "sft": ("pretrain", "tokenizer", "shards", "benchmarks"),
    "rl": ("sft", "tokenizer", "benchmarks"),
    "base_eval": (),
    "chat_eval": (),
}
"""Inputs that decide what comes out of a run that is kept."""


def plan_pretrain(request: Request) -> Planned:
    """Pretraining: tokens, tokenizer and what is looked at on the way."""
    asked = ask(request)
    sources = tokens_and_tokenizer(asked.inputs, asked.option("tokens"), asked.option("tokenizer"))
    index = TokenIndex.load(sources["tokens"].folder)
    plan = _dial(asked, index.vocab_size)
    execution = fit_batch(asked, plan.rows_per_step)
    lineage = _shards_of(asked, sources["tokens"])
    looks = _looks(asked)
    execution, bundle = _tasks_while_training(asked, execution, lineage)
    warning = extrapolation_warning(asked.recipe, plan)
    folder = _folder(asked, "pretrain", asked.option("model_tag") or f"d{asked.recipe.depth}")
    return Planned(
        kind="pretrain",
        station="pretrain",
        recipe=asked.recipe,
        execution=execution,
        sources={**sources, **bundle},
        folder=folder,
        store=asked.inputs.store,
        notes=(*asked.found.notes, *((warning,) if warning else ())),
        lineage=lineage,
        looks=looks,
        overwrite=bool(asked.option("overwrite")),
        resume_step=int(asked.option("resume_from_step") or -1),
    )


def plan_sft(request: Request) -> Planned:
    """Fine-tuning: a base model, its tokenizer and questions about its text."""
    asked = ask(request)
    model = _model(asked, ("pretrain",))
    config = _config(model)
    check_inherited(asked.found, flat_fields(config))
    recipe = _with_warmup(asked)
    plan = _plan_of(model, config)
    execution = fit_batch(asked, plan.rows_per_step)
    text = asked.option("shards")
    shards = asked.inputs.named("shards", text) if text else _shards_of_model(asked, model)
    if shards is None:
        raise ConfigError(
            f"nothing says which text {model.model} was trained on; name its shards with --shards"
        )
    sources = {"pretrain": asked.inputs.model_source(model), "tokenizer": _tokenizer(model)}
    sources |= _benchmarks(asked) if reads_files(recipe) else {}
    return Planned(
        kind="sft",
        station="sft",
        recipe=recipe,
        execution=execution,
        sources={**sources, "shards": shards},
        folder=_folder(asked, "sft", asked.option("model_tag") or _tag(model, config)),
        store=asked.inputs.store,
        notes=tuple(asked.found.notes),
        lineage=_lineage(asked, model),
        overwrite=bool(asked.option("overwrite")),
    )


def plan_rl(request: Request) -> Planned:
    """Reinforcement learning: a chat model, its tokenizer and, for gsm8k, its problems."""
    asked = ask(request)
    model = _model(asked, ("sft",))
    config = _config(model)
    _plan_of(model, config)
    # Files that are not read must not tell a run from one without them.
    data = _benchmarks(asked) if asked.recipe.task != "sums" else {}
    if asked.recipe.task != "sums" and not data:
        raise ConfigError(
            f"the problems of {asked.recipe.task} are read from files: name their folder with "
            "--data, or learn sums, which are made, with --set task=sums"
        )
    sources = {"sft": asked.inputs.model_source(model), "tokenizer": _tokenizer(model), **data}
    return Planned(
        kind="rl",
        station="rl",
        recipe=asked.recipe,
        execution=asked.execution,
        sources=sources,
        folder=_folder(asked, "rl", asked.option("model_tag") or _tag(model, config)),
        store=asked.inputs.store,
        notes=tuple(asked.found.notes),
        lineage=_lineage(asked, model),
        overwrite=bool(asked.option("overwrite")),
    )


def plan_base_eval(request: Request, parts: tuple[str, ...], kind: str) -> Planned:
    """Bits per byte, in-context tasks, samples: what is given is measured."""
    asked = ask(request)
    model = _model(asked, ("pretrain", "sft", "rl"))
    sources = {"pretrain": asked.inputs.model_source(model), "tokenizer": _tokenizer(model)}
    if "bpb" in parts:
        sources["tokens"] = _held_out(asked, model, "tokens", "bits per byte")
    if "core" in parts and (bundle := asked.option("eval_bundle")):
        folder, tasks = open_bundle(bundle, asked.base)
        sources["eval_bundle"] = Source(folder, "")
        if not tasks.is_official:
            asked.found.notes.append(f"{folder} is not the official set: no core_metric")
    elif "core" in parts:
        sources["shards"] = _held_out(asked, model, "shards", "tasks made of held-out text")
    recipe = asked.recipe if "sample" in parts else asked.with_recipe(sample_tokens=0)
    return Planned(
        kind=kind,
        station="base_eval",
        recipe=recipe,
        execution=asked.execution,
        sources=sources,
        folder=_folder(asked, kind, _eval_tag(model, _config(model))),
        store=asked.inputs.store,
        notes=tuple(asked.found.notes),
        fresh=bool(asked.option("fresh")),
    )


def parts_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What --eval of the script base_eval names; everything by default."""
    names = tuple(name.strip() for name in (values.get("eval") or ",".join(PARTS)).split(","))
    return tuple(one_of("part of --eval", name, PARTS) for name in names)


def plan_chat_eval(request: Request) -> Planned:
    """Benchmarks put to a chat model."""
    asked = ask(request)
    kind = asked.option("source")
    if kind:
        one_of("--source", kind, CHAT_STATIONS)
    model = _model(asked, (kind,) if kind else ("rl", "sft"))
    name = model.kind or kind or "sft"
    data = _benchmarks(asked)
    sources = {name: asked.inputs.model_source(model), "tokenizer": _tokenizer(model), **data}
    folder = data["benchmarks"].folder if data else None
    names = _benchmark_names(asked, folder)
    return Planned(
        kind="chat_eval",
        station="chat_eval",
        recipe=asked.with_recipe(benchmarks=names),
        execution=asked.execution,
        sources=sources,
        folder=_folder(asked, "chat_eval", f"{name}-{_eval_tag(model, _config(model))}"),
        store=asked.inputs.store,
        notes=tuple(asked.found.notes),
        fresh=bool(asked.option("fresh")),
    )


def _benchmark_names(asked: Asked, folder: Path | None) -> tuple[str, ...]:
    """Those that are named, or those of the recipe and all whose rows are at hand."""
    text = asked.option("task_name")
    if not text and "benchmarks" in asked.found.recipe:
        return tuple(asked.recipe.benchmarks)
    at_hand = [n for n in FROM_FILES if folder and rows_file(folder, n)]
    if not text:
        return tuple(dict.fromkeys([*asked.recipe.benchmarks, *at_hand]))
    names = [TASK_NAMES.get(name.strip(), name.strip()) for name in text.split("|")]
    for name in names:
        one_of("benchmark", name, [*BENCHMARKS, *TASK_NAMES])
        if name in FROM_FILES and name not in at_hand:
            files = " or ".join(expected_files(name, "test"))
            raise ConfigError(f"{name} is read from a file: give a folder with {files} as --data")
    return tuple(names)


def rows_file(folder: Path, name: str) -> Path | None:
    """The file with the test rows of a benchmark, if it is there."""
    files = (folder / file for file in expected_files(name, "test"))
    return next((path for path in files if path.is_file()), None)


def check_resume_step(planned: Planned) -> None:
    """Refuse --resume-from-step when the run would continue from another step."""
    newest = newest_step(planned.folder.work)
    if planned.resume_step >= 0 and newest != planned.resume_step:
        there = (
            "there is no checkpoint" if newest is None else f"the newest one is of step {newest}"
        )
        raise ConfigError(
            f"--resume-from-step={planned.resume_step}: a run continues from its newest "
            f"checkpoint, and {there} in {planned.folder.work}; leave the flag away"
        )


def _dial(asked: Asked, vocab_size: int) -> TrainingPlan:
    try:
        return plan_training(asked.recipe, vocab_size)
    except ValidationError as error:
        raise config_error("pretrain", error) from error


def _looks(asked: Asked) -> TrainingLooks:
    options = asked.found.options
    looks = TrainingLooks()
    given = {
        "validation_tokens": options.get("eval_tokens", looks.validation_tokens),
        "max_per_task": max(options.get("core_metric_max_per_task", looks.max_per_task), 0),
    }
    try:
        return TrainingLooks.model_validate({**looks.model_dump(), **given})
    except ValidationError as error:
        raise config_error("pretrain", error) from error


def _tasks_while_training(
    asked: Asked, execution: Execution, lineage: Mapping[str, Source]
) -> tuple[Execution, dict[str, Source]]:
    """The tasks that are asked on the way: an official bundle, or held-out text, or none."""
    if execution.core_metric_every < 0:
        return execution, {}
    if bundle := asked.option("eval_bundle"):
        return execution, {"eval_bundle": Source(open_bundle(bundle, asked.base)[0], "")}
    if "shards" in lineage:
        return execution, {"shards": lineage["shards"]}
    if "core_metric_every" in asked.found.execution:
        raise ConfigError(
            "--core-metric-every needs tasks: give the official ones with --eval-bundle, or text "
            "to make some of with --shards"
        )
    return execution.model_copy(update={"core_metric_every": -1}), {}


def _shards_of(asked: Asked, tokens: Source) -> dict[str, Source]:
    text = asked.option("shards")
    found = asked.inputs.named("shards", text) if text else asked.inputs.beside(tokens, "shards")
    return {"shards": found} if found else {}


def _model(asked: Asked, kinds: tuple[str, ...]) -> FoundModel:
    name = asked.option("checkpoint") or asked.option("model_tag")
    return asked.inputs.model(name, kinds, asked.option("tokenizer"))


def _config(model: FoundModel) -> dict[str, Any]:
    path = model.model / MODEL_FILE
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
        ModelConfig.model_validate(config["model"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{path} cannot be read as the description of a model ({error}); name a folder that "
            "pretrain, sft or rl published"
        ) from error
    return config


def _plan_of(model: FoundModel, config: Mapping[str, Any]) -> TrainingPlan:
    """How the base model was trained, which all later training goes on from."""
    try:
        return TrainingPlan.model_validate(config["plan"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"{model.model / MODEL_FILE} does not say how the model was trained (no usable "
            "`plan`); train on from a model that the stations pretrain or sft made"
        ) from error


def _tag(model: FoundModel, config: Mapping[str, Any]) -> str:
    """The tag that a model made by hand has, or the depth of another one."""
    tag = model.model.parent.name
    is_by_hand = model.ref is None and model.model.name.startswith("model-")
    return tag if is_by_hand else f"d{config['model']['n_layer']}"


def _eval_tag(model: FoundModel, config: Mapping[str, Any]) -> str:
    """As `_tag`, but models of one depth in the store keep their results apart."""
    tag = _tag(model, config)
    return tag if model.ref is None else f"{tag}-{model.ref.fingerprint[:8]}"


def _tokenizer(model: FoundModel) -> Source:
    return Source(model.tokenizer.absolute(), folder_identity(model.tokenizer))


def _lineage(asked: Asked, model: FoundModel) -> dict[str, Source]:
    found = {kind: asked.inputs.of_lineage(model, kind) for kind in ("tokens", "shards")}
    return {kind: source for kind, source in found.items() if source is not None}


def _shards_of_model(asked: Asked, model: FoundModel) -> Source | None:
    return asked.inputs.of_lineage(model, "shards")


def _held_out(asked: Asked, model: FoundModel, kind: str, what: str) -> Source:
    text = asked.option(kind)
    found = asked.inputs.named(kind, text) if text else asked.inputs.of_lineage(model, kind)
    if found is None:
        raise ConfigError(
            f"nothing says which {kind} {model.model} was trained on, and {what} need them: name "
            f"them with --{kind}"
        )
    return found


def _benchmarks(asked: Asked) -> dict[str, Source]:
    text = asked.option("data")
    found = asked.inputs.named("benchmarks", text) if text else asked.inputs.newest("benchmarks")
    return {"benchmarks": found} if found else {}


def _with_warmup(asked: Asked) -> Recipe:
    ratio = float(asked.option("warmup_ratio") or 0.0)
    if not ratio:
        recipe: Recipe = asked.recipe
        return recipe
    steps = asked.recipe.num_iterations
    if steps == "auto" or not 0 < ratio <= 1:
        raise ConfigError(
            f"--warmup-ratio={ratio:g}: expected a share from 0 to 1 of a number of steps that is "
            "given with --num-iterations"
        )
    return asked.with_recipe(schedule__warmup_steps=round(ratio * steps))


def _folder(asked: Asked, kind: str, tag: str) -> RunFolder:
    return RunFolder(asked.base / kind / check_tag(tag))
