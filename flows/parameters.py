"""What a run is asked for, and what that means for every station."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import Field, ValidationError, field_validator

from flows import checks
from flows.benchmark_sets import check_conversations_at_hand, left_out, with_benchmarks
from flows.overrides import apply_overrides, config_error, one_of
from flows.presets import (
    FOR_GPUS,
    MAKING_STATIONS,
    PRESETS,
    STATIONS,
    USUAL_SOURCES,
    Preset,
    with_reference_problems,
)
from flows.source_files import Reading, with_files
from flows.sources import Asked, addresses, draft, notes_on, parse_sources, without_weight
from flows.text_checks import check_enough_text, check_source
from nanochat_core.artifacts.location import default_store_url
from nanochat_core.config.base import ComputeDtype, Config
from nanochat_core.config.execution import Execution, Tracker
from nanochat_core.data.harvest import resolve_harvest_source
from nanochat_core.data.hub_shards import HubAccess
from nanochat_core.data.recipes import HarvestSource, HubSource
from nanochat_core.errors import ConfigError

DTYPE_VARIABLE = "NANOCHAT_DTYPE"
UPSTREAM_VARIABLE = "NANOCHAT_UPSTREAM"
FROM_PRESET = "preset"
BEGINNING, END = "none", "end"
NO_RUN = "dummy"
"""The name that turns tracking off, as in the reference."""

WEAK_SANDBOX = {f"chat_eval_{model}.allow_weak_sandbox": True for model in ("sft", "rl")}
"""Overrides that let generated code run where only limits hold it back."""


class RunParameters(Config):
    """Parameters of the flow `speedrun`; all have a default, and none may hold a secret."""

    preset: str = Field(
        "demo", description="size and data of the run", json_schema_extra={"enum": [*PRESETS]}
    )
    depth: int | str = Field(FROM_PRESET, description="layers of the model; the one dial")
    store: str = Field("default", description="folder or fsspec URL of the artifact store")
    upstream: str = Field(
        "", description="another store, only read: asked for what the artifact store lacks"
    )
    source: tuple[str, ...] = Field(
        (),
        description="text: files, folders, globs, URLs, published shards (hf://datasets/..., "
        "shards:FOLDER), docs; with shares as in PLACE@30",
    )
    mirrors: tuple[str, ...] = Field(
        (), description="folders or URLs with copies of published shards, tried in order"
    )
    offline: bool = Field(
        False, description="fetch no text: published shards are those in the store and mirrors here"
    )
    benchmarks: str = Field("", description="folder or URL with the files of official benchmarks")
    conversations: tuple[str, ...] = Field(
        (), description="your own conversations for fine-tuning: JSONL files or URLs, FILE@EPOCHS"
    )
    overrides: dict[str, Any] = Field({}, description='single numbers, as in {"sft.epochs": 2}')
    compute_dtype: str = Field(
        FROM_PRESET,
        description="of all stations that compute",
        json_schema_extra={"enum": [FROM_PRESET, *get_args(ComputeDtype)]},
    )
    start_from: str = Field(
        BEGINNING,
        description="make this station and all after it again",
        json_schema_extra={"enum": [BEGINNING, *STATIONS]},
    )
    stop_after: str = Field(
        END, description="end after this station", json_schema_extra={"enum": [*STATIONS, END]}
    )
    force: tuple[str, ...] = Field((), description="make these stations again")
    stage_pools: dict[str, str] = Field(
        {}, description='work pools that make stations, as in {"pretrain": "gpu"}; else: right here'
    )
    wait: bool = Field(False, description="wait for another run that makes the same artifact")
    run: str = Field("", description="name of the run at the tracker; dummy is no tracking")
    tracker: str = Field(
        "none",
        description="where the metrics of training go, too; with a run named, wandb",
        json_schema_extra={"enum": [*get_args(Tracker)]},
    )

    @field_validator("source", "mirrors", "benchmarks", "conversations", "store", "upstream")
    @classmethod
    def _hold_no_secret(cls, given: tuple[str, ...] | str) -> tuple[str, ...] | str:
        """Parameters are recorded with the run: a key in a URL would be, too."""
        for url in (given,) if isinstance(given, str) else given:
            # KEY:SECRET@30 could be taken for a share.
            hosts = [place.split("/", 1)[0] for place in url.split("://")[1:]]
            if any(re.search(":.*[^0-9].*@", host) for host in hosts):
                _refuse_secret(url)
            _refuse_secret(without_weight(url))
        return given


def _refuse_secret(url: str) -> None:
    # One URL can stand inside another: simplecache::https://..., zip://a.txt::https://...
    protocol, *places = url.split("://")
    is_local = protocol.lower() in ("file", "local", "memory")
    is_signed = not is_local and "?" in url and bool(re.search(r"\?[^/]*=", url))
    if places and (is_signed or any("@" in place.split("/", 1)[0] for place in places)):
        raise ConfigError(
            f"a URL on {protocol}:// holds a user name, key or signature, which would "
            "be recorded with the run; give credentials in the environment instead"
        )


class ResolvedRun(Config):
    """Everything that a run will do, worked out before its first task."""

    preset_name: str
    preset: Preset
    store_url: str
    upstream_url: str
    source_paths: dict[str, tuple[str, ...]]
    """Station -> what the user named for it to read."""
    stations: tuple[str, ...]
    forced: tuple[str, ...]
    pools: dict[str, str]
    """Station -> work pool, for those that are made elsewhere."""
    warnings: tuple[str, ...]


def parse_parameters(values: Mapping[str, Any]) -> RunParameters:
    """Parameters from plain values; a mistake is a ConfigError that names the field."""
    for name in values:
        one_of("parameter", name, list(RunParameters.model_fields))
    try:
        return RunParameters.model_validate(values)
    except ValidationError as error:
        raise config_error("", error) from error


def resolve(parameters: RunParameters, environ: Mapping[str, str]) -> ResolvedRun:
    """The run that is asked for, with its source read (versions, or sha256 of files)."""
    return _found(parameters, environ, parse_sources(_sources(parameters)), hashed=True)


def check(parameters: RunParameters, environ: Mapping[str, str]) -> ResolvedRun:
    """As `resolve`, for early errors: of own text only so much is read as tells whether it will do.

    Its recipe is no one's: own text has no digests in it, and documentation no versions.
    """
    asked = parse_sources(_sources(parameters))
    resolved = _found(parameters, environ, asked, hashed=False)
    check_source(asked, resolved.preset)
    if "pretrain" in resolved.stations:
        check_enough_text(asked, resolved.preset)
    return resolved


def _sources(parameters: RunParameters) -> tuple[str, ...]:
    usual = USUAL_SOURCES.get(parameters.preset)
    return parameters.source or (() if usual is None else (usual,))


def _found(
    parameters: RunParameters,
    environ: Mapping[str, str],
    asked: Sequence[Asked],
    *,
    hashed: bool,
) -> ResolvedRun:
    """The run with the files of its source, as far as they matter (`hashed`: own text, too)."""
    make = PRESETS[one_of("preset", parameters.preset, list(PRESETS))]
    harvest = resolve_harvest_source() if hashed else HarvestSource(versions={}, python="")
    resolved = _resolve(parameters, environ, make(draft(asked, harvest)))
    preset = resolved.preset
    if isinstance(preset.recipes.shards.source, HubSource):
        _refuse_cutting(parameters)
    num_shards = None
    if "shards.num_shards" in parameters.overrides:
        num_shards = preset.recipes.shards.num_shards
    how = Reading(
        HubAccess.of(environ),
        resolved.store_url,
        offline=parameters.offline,
        num_shards=num_shards,
        is_trained="pretrain" in resolved.stations,
        hashed=hashed,
    )
    preset = with_files(preset, asked, checks.plan(preset), how)
    places = addresses(asked, parameters.mirrors, offline=parameters.offline)
    return resolved.model_copy(
        update={
            "preset": preset,
            "source_paths": {**resolved.source_paths, "shards": places},
            "warnings": (*resolved.warnings, *notes_on(asked), *_notes_on_machine(resolved)),
        }
    )


def _notes_on_machine(resolved: ResolvedRun) -> tuple[str, ...]:
    is_here = "pretrain" in resolved.stations and "pretrain" not in resolved.pools
    if resolved.preset_name not in FOR_GPUS or not is_here or checks.has_gpu():
        return ()
    return (
        f"{resolved.preset_name} is for GPUs, and this machine shows none; nanochat plan "
        f"{resolved.preset_name} tells what it takes here",
    )


def _refuse_cutting(parameters: RunParameters) -> None:
    for name in ("shards.max_documents", "shards.validation_percent"):
        if name in parameters.overrides:
            raise ConfigError(
                f"--set {name}={parameters.overrides[name]}: published shards are taken as they "
                "are, the last one for validation; leave it out, or set shards.num_shards"
            )


def _resolve(parameters: RunParameters, environ: Mapping[str, str], preset: Preset) -> ResolvedRun:
    dtype = parameters.compute_dtype
    if dtype == FROM_PRESET:
        dtype = environ.get(DTYPE_VARIABLE, "") or FROM_PRESET
    depth = _depth_override(parameters.depth)
    if both := depth.keys() & parameters.overrides.keys():
        name = both.pop()
        raise ConfigError(
            f"depth={parameters.depth} and {name}={parameters.overrides[name]} say the same thing; "
            "give one of them"
        )
    general = {**depth, **_dtype_overrides(preset, dtype)}
    tracking = tracking_overrides(parameters.run, parameters.tracker, parameters.preset)
    wished = preset
    preset = with_benchmarks(preset, parameters.benchmarks, parameters.conversations)
    notes = left_out(wished, preset)
    if parameters.preset in FOR_GPUS:
        preset = with_reference_problems(preset)
    preset = apply_overrides(preset, {**general, **tracking, **parameters.overrides})
    stations, pools = _stations(parameters, preset), _pools(parameters.stage_pools)
    checks.check_benchmarks(preset, stations)
    check_conversations_at_hand(preset, stations)
    planned = checks.plan(preset)
    checks.check_machines(preset)
    _check_this_machine(preset, stations, pools)
    store, upstream = parameters.store, parameters.upstream or environ.get(UPSTREAM_VARIABLE, "")
    store = default_store_url(environ) if store == "default" else store
    for url in (store, upstream):
        _refuse_secret(url)
    return ResolvedRun(
        preset_name=parameters.preset,
        preset=preset,
        store_url=store,
        upstream_url=upstream,
        source_paths={"benchmarks": (parameters.benchmarks, *parameters.conversations)},
        stations=stations,
        forced=_forced(parameters, stations),
        pools=pools,
        warnings=(*checks.warnings(preset, planned), *notes),
    )


def _check_this_machine(
    preset: Preset, stations: tuple[str, ...], pools: Mapping[str, str]
) -> None:
    """Refuse what cannot work here, of the stations that are made here."""
    elsewhere = dict.fromkeys(pools, Execution(compile=False))
    executions = preset.executions.model_copy(update=elsewhere)
    here = preset.model_copy(update={"executions": executions})
    checks.check_sandbox(here, [name for name in stations if name not in pools])
    checks.check_devices(here)
    checks.check_trackers(here)
    if "pretrain" in stations:
        checks.check_compiler(here)


def _depth_override(depth: int | str) -> dict[str, Any]:
    if depth == FROM_PRESET:
        return {}
    if not str(depth).isdigit() or int(depth) < 1:
        raise ConfigError(f"depth={depth!r}: expected a whole number from 1, or {FROM_PRESET!r}")
    return {"pretrain.depth": int(depth)}


def tracking_overrides(run: str, tracker: str, default_run: str) -> dict[str, Any]:
    """What a named run, a chosen tracker, or both mean for the stations that train."""
    one_of("tracker", tracker, get_args(Tracker))
    if run == NO_RUN or (not run and tracker == "none"):
        return {}
    chosen, name = "wandb" if tracker == "none" else tracker, run or default_run
    return {
        f"{station}.{field}": value
        for station in checks.TRAINING_STATIONS
        for field, value in (("tracker", chosen), ("tracker_run", f"{name}-{station}"))
    }


def _dtype_overrides(preset: Preset, dtype: str) -> dict[str, Any]:
    if dtype == FROM_PRESET:
        return {}
    one_of(f"compute dtype (in {DTYPE_VARIABLE} or compute_dtype)", dtype, get_args(ComputeDtype))
    recipes = {name: getattr(preset.recipes, name) for name in MAKING_STATIONS}
    return {
        f"{name}.compute_dtype": dtype
        for name, recipe in recipes.items()
        if "compute_dtype" in type(recipe).model_fields
    }


def _stations(parameters: RunParameters, preset: Preset) -> tuple[str, ...]:
    # The one station that most runs have no use for.
    left_out = () if preset.recipes.benchmarks.files else ("benchmarks",)
    last = STATIONS[-1]
    if parameters.stop_after != END:
        last = one_of("station", parameters.stop_after, STATIONS)
    wanted = STATIONS[: STATIONS.index(last) + 1]
    return tuple(name for name in wanted if name not in left_out)


def _pools(stage_pools: Mapping[str, str]) -> dict[str, str]:
    for station, pool in stage_pools.items():
        one_of("station", station, MAKING_STATIONS)
        if not pool.strip() or "/" in pool:
            raise ConfigError(
                f"stage_pools: {station} is sent to {pool!r}; give the name of a work pool, "
                "as `nanochat bootstrap` makes them: cpu, gpu"
            )
    return dict(stage_pools)


def _forced(parameters: RunParameters, stations: tuple[str, ...]) -> tuple[str, ...]:
    asked = {one_of("station", name, STATIONS) for name in parameters.force}
    if parameters.start_from != BEGINNING:
        first = one_of("station", parameters.start_from, STATIONS)
        later = STATIONS[STATIONS.index(first) :]
        asked |= {first, *(name for name in later if name in stations)}
    if "benchmarks" in asked and not (parameters.benchmarks or parameters.conversations):
        raise ConfigError("the station benchmarks is there only with --benchmarks FOLDER; give it")
    if never := asked - set(stations):
        raise ConfigError(
            f"{', '.join(sorted(never))} is to be made again, but the run stops after "
            f"{stations[-1]}; choose a later --stop-after"
        )
    return tuple(name for name in stations if name in asked)
