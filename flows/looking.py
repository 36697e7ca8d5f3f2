"""Reading the artifact store for people: lists, damages, and the folders of a model."""

from collections.abc import Mapping
from pathlib import Path

from nanochat_core.artifacts.location import default_store_url
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import ArtifactNotFoundError, ConfigError

LATEST = "latest"
MODEL_INPUT = "tokenizer"
"""A station whose artifact is a model has a tokenizer among its inputs, and `WEIGHTS`."""
WEIGHTS = "model.safetensors"


def open_store(url: str, environ: Mapping[str, str]) -> ArtifactStore:
    """The store of a URL, or of the environment's choice for "default"."""
    return ArtifactStore(default_store_url(environ) if url == "default" else url)


def resolve_model(store: ArtifactStore, name: str) -> tuple[Path, Path]:
    """Folders of a model and of its tokenizer, both verified."""
    if name == LATEST and store.alias(LATEST) is None:
        raise ArtifactNotFoundError(
            f"there is no model to chat with in {store.url} yet; make one with: nanochat run demo"
        )
    ref = store.resolve(name)
    manifest = store.manifest(ref)
    tokenizer = manifest.input_refs.get(MODEL_INPUT)
    if tokenizer is None or not any(file.path == WEIGHTS for file in manifest.files):
        raise ConfigError(
            f"{ref.short} is no model; name an artifact of pretrain or sft (nanochat artifacts ls)"
        )
    return store.materialize(ref), store.materialize(tokenizer)


def artifact_lines(store: ArtifactStore, station: str = "") -> list[str]:
    """One line an artifact: reference, size, date, aliases."""
    names: dict[str, list[str]] = {}
    for alias, ref in store.aliases().items():
        names.setdefault(f"{ref.station}/{ref.fingerprint}", []).append(alias)
    lines = []
    for ref in store.list(station or None):
        manifest = store.manifest(ref)
        aliases = ", ".join(names.get(f"{ref.station}/{ref.fingerprint}", []))
        size = f"{manifest.bytes / 1e6:10.1f} MB"
        lines.append(f"{ref.short:<24}{size}  {manifest.created[:19]}  {aliases}".rstrip())
    return lines or [f"{store.url} holds no artifact yet; make one with: nanochat run demo"]


def verify_lines(store: ArtifactStore, name: str = "") -> list[str]:
    """One line for every damaged file, of one artifact or of the whole store."""
    ref = store.resolve(name) if name else None
    return [f"{damage.path}: {damage.reason}" for damage in store.verify(ref)]
