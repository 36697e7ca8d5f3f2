"""Which artifacts an export is made of, by the name of a model."""

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.errors import ConfigError
from nanochat_core.inference.finding import CHAT_STATIONS, ModelFinder


def model_ref(store: ArtifactStore, name: str) -> ArtifactRef:
    """The artifact of a model; `ConfigError` for a folder, of which the store knows nothing."""
    found = ModelFinder(store).find(name)
    if found.ref is None:
        raise ConfigError(
            f"{name!r} is the folder of a model, and only models of the store {store.url} are "
            "exported, since scores and lineage come from there; see: nanochat artifacts ls"
        )
    return found.ref


def tokenizer_ref(store: ArtifactStore, model: ArtifactRef) -> ArtifactRef:
    """The tokenizer that a model was trained with."""
    place: ArtifactRef | None = model
    while place is not None:
        inputs = store.manifest(place).input_refs
        if "tokenizer" in inputs:
            return inputs["tokenizer"]
        place = next((inputs[kind] for kind in CHAT_STATIONS if kind in inputs), None)
    raise ConfigError(
        f"{model.short} does not say which tokenizer it was made with; make the model again"
    )
