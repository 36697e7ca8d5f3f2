"""From what people type to the base model that it stands for, or was made from."""

import re

from flows.run_differences import run_record
from nanochat_core.artifacts.ancestry import Ancestry
from nanochat_core.artifacts.records import Manifests, Runs
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Manifest
from nanochat_core.errors import ArtifactNotFoundError, ConfigError
from tasks.listening import StageRecord

STATION = "pretrain"
_RUN = re.compile(r"^(last(~\d+)?|\d{8}-.*)$")
_SHOWN = 6


def pretrain_of(store: ArtifactStore, name: str) -> Manifest:
    """The base model behind an alias, an artifact or a run.

    Raises ArtifactNotFoundError, and ConfigError for what has no base model or has several.
    """
    ref = _run_model(store, name) if _RUN.match(name) else _resolved(store, name)
    return store.manifest(ref) if ref.station == STATION else _ancestor(store, name, ref)


def _resolved(store: ArtifactStore, name: str) -> ArtifactRef:
    try:
        return store.resolve(name)
    except ArtifactNotFoundError:
        if not any(run.startswith(name) for run in Runs(store.files).names()):
            raise
    return _run_model(store, name)


def _run_model(store: ArtifactStore, name: str) -> ArtifactRef:
    stations = run_record(store, name).get("stations", {})
    ref = StageRecord.model_validate(stations[STATION]).ref if STATION in stations else None
    if ref is None:
        came = ", ".join(stations) or "none"
        raise ConfigError(f"the run {name} made no base model; its stations are: {came}")
    return ref


def _ancestor(store: ArtifactStore, name: str, ref: ArtifactRef) -> Manifest:
    made_from = Ancestry(Manifests(store.files)).closure([ref])
    found = [manifest for manifest in made_from if manifest.station == STATION]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(
            f"{name} ({ref.short}) was made from no base model that is in {store.url}; "
            "give a model or its run: nanochat artifacts ls pretrain"
        )
    shown = ", ".join(manifest.ref.short for manifest in found[:_SHOWN])
    more = ", …" if len(found) > _SHOWN else ""
    raise ConfigError(
        f"{name} ({ref.short}) was made from {len(found)} base models; give those to compare by "
        f"name: {shown}{more}"
    )
