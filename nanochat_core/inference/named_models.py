"""The models that can be named where one is picked: those of a store, and those made by hand.

Torch-free; a program that may not open the store itself picks its models here.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nanochat_core.artifacts.newest import newest_manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.inference.by_hand import list_by_hand
from nanochat_core.inference.finding import CHAT_STATIONS, FoundModel, ModelFinder

NUM_LISTED = 50
"""The newest of each station; an older one is found by its name all the same."""


@dataclass(frozen=True)
class NamedModel:
    """A name that `ModelShelf.find` knows; `target` is what an alias stands for, else empty."""

    name: str
    station: str
    created: str
    target: str = ""


@dataclass(frozen=True)
class ModelShelf:
    """All models that a person may pick by name."""

    url: str
    by_hand: Path | None = None

    @cached_property
    def _finder(self) -> ModelFinder:
        return ModelFinder(ArtifactStore(self.url), self.by_hand)

    def find(self, name: str) -> FoundModel:
        """The folders of a model; ArtifactNotFoundError, CheckpointError (see `ModelFinder`)."""
        return self._finder.find(name)

    def names(self) -> list[NamedModel]:
        """Aliases of models first, then models of the store and by hand, the newest first."""
        store = self._finder.store
        aliases = [
            NamedModel(alias, ref.station, store.manifest(ref).created, ref.short)
            for alias, ref in store.aliases().items()
            if ref.station in CHAT_STATIONS
        ]
        models = [
            NamedModel(manifest.ref.short, station, manifest.created)
            for station in CHAT_STATIONS
            for manifest in newest_manifests(store, station, NUM_LISTED)
        ]
        if self.by_hand is not None:
            models += [
                NamedModel(f"{kind}/{made.folder.parent.name}", kind, made.created)
                for kind in CHAT_STATIONS
                for made in list_by_hand(self.by_hand, kind)
            ]
        return [*aliases, *sorted(models, key=lambda model: model.created, reverse=True)]
