"""Find a model by folder, alias or tag, and load it with its tokenizer attached."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat_core.artifacts.location import default_store_url
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.distributed.ranks import pick_device
from nanochat_core.errors import ArtifactNotFoundError, CheckpointError
from nanochat_core.inference.loading import CONFIG_FILE, load_pair
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import INFO_FILE

CHAT_STATIONS = ("rl", "sft", "pretrain")
"""Stations that make models, the most finished first."""
_DEPTH_TAG = re.compile(r"d(?P<depth>[1-9][0-9]*)")


@dataclass(frozen=True)
class ModelFolders:
    """Where the files of a model and of its tokenizer are."""

    model: Path
    tokenizer: Path


class CheckpointManager:
    """A model by folder, by alias or fingerprint of the store, or by tag (`d12`: the newest of 12).

    `store` is a URL; by default the one that the command line uses. `tokenizer` is needed only
    for a folder that has none in itself or in `tokenizer/`. `compute_dtype` defaults to float32,
    or bfloat16 on CUDA, where decoding would wait for twice the bytes.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        store: str | None = None,
        tokenizer: str | Path | None = None,
        device: str = "auto",
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.name, self._store_url = str(name), store
        self._tokenizer = None if tokenizer is None else Path(tokenizer)
        self.device = pick_device(device)
        on_cuda = self.device.type == "cuda"
        self.compute_dtype = compute_dtype or (torch.bfloat16 if on_cuda else torch.float32)

    def load(self) -> tuple[GPT, dict[str, Any]]:
        """The model, with `model.tokenizer`, and its config.json.

        Raises ArtifactNotFoundError for a name that stands for nothing, CheckpointError for
        something that is no model, or has no tokenizer, or another one than it was trained with.
        """
        found = self.find()
        model, config, tokenizer = load_pair(
            found.model, found.tokenizer, self.device, self.compute_dtype
        )
        model.eval()
        model.tokenizer = tokenizer
        return model, config

    def find(self) -> ModelFolders:
        """The folders to load from."""
        folder = Path(self.name).expanduser()
        if (folder / CONFIG_FILE).is_file():
            return ModelFolders(folder, self._tokenizer or _tokenizer_beside(folder))
        if folder.is_dir():
            raise CheckpointError(
                f"{folder} has no {CONFIG_FILE}; give a folder that pretrain, sft or rl published"
            )
        store = ArtifactStore(self._url())
        ref = self._resolve(store)
        if ref.station not in CHAT_STATIONS:
            raise CheckpointError(
                f"{self.name!r} is {ref.short}, which is no model; name one of the stations "
                f"{', '.join(CHAT_STATIONS)}"
            )
        tokenizer = self._tokenizer or store.materialize(_tokenizer_ref(store, ref))
        return ModelFolders(store.materialize(ref), tokenizer)

    def _url(self) -> str:
        # A user's script is its own entry point, and the store is where the command line keeps it.
        return self._store_url or default_store_url(os.environ)  # noqa: TID251

    def _resolve(self, store: ArtifactStore) -> ArtifactRef:
        tag = _DEPTH_TAG.fullmatch(self.name)
        if tag and self.name not in store.aliases():
            return _newest_of_depth(store, int(tag["depth"]))
        return store.resolve(self.name)


def _tokenizer_beside(folder: Path) -> Path:
    for place in (folder, folder / "tokenizer"):
        if (place / INFO_FILE).is_file():
            return place
    raise CheckpointError(
        f"{folder} has no tokenizer ({INFO_FILE}) in itself or in tokenizer/; give "
        "CheckpointManager(folder, tokenizer=...) the one that the model was trained with"
    )


def _tokenizer_ref(store: ArtifactStore, ref: ArtifactRef) -> ArtifactRef:
    """The tokenizer that a model was made with, by its lineage."""
    place: ArtifactRef | None = ref
    while place is not None:
        inputs = store.manifest(place).input_refs
        if "tokenizer" in inputs:
            return inputs["tokenizer"]
        place = next((inputs[name] for name in CHAT_STATIONS if name in inputs), None)
    raise CheckpointError(
        f"{ref.short} does not say which tokenizer it was made with; give CheckpointManager(..., "
        "tokenizer=FOLDER)"
    )


def _newest_of_depth(store: ArtifactStore, depth: int) -> ArtifactRef:
    seen: set[int] = set()
    for station in CHAT_STATIONS:
        for ref in reversed(store.list(station)):
            found = _depth(store, ref)
            if found == depth:
                return ref
            seen.add(found)
    depths = ", ".join(f"d{d}" for d in sorted(seen)) or "none"
    raise ArtifactNotFoundError(
        f"no model of depth {depth} in {store.url}; there are: {depths}. Run a preset with "
        f"--depth {depth}, or name another model"
    )


def _depth(store: ArtifactStore, ref: ArtifactRef) -> int:
    """Depth of a model: in the recipe of its pretraining, which a later station has as input."""
    manifest = store.manifest(ref)
    base = next((manifest.input_refs[s] for s in CHAT_STATIONS if s in manifest.input_refs), None)
    return _depth(store, base) if base else int(manifest.recipe["depth"])
