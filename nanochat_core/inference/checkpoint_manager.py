"""Find a model by folder, alias or tag, and load it with its tokenizer attached."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat_core.artifacts.location import default_store_url
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.distributed.ranks import pick_device
from nanochat_core.inference.by_hand import by_hand_base
from nanochat_core.inference.finding import CHAT_STATIONS, ModelFinder
from nanochat_core.inference.loading import load_pair
from nanochat_core.model.gpt import GPT

__all__ = ["CHAT_STATIONS", "CheckpointManager", "ModelFolders"]


@dataclass(frozen=True)
class ModelFolders:
    """Where the files of a model and of its tokenizer are."""

    model: Path
    tokenizer: Path


class CheckpointManager:
    """A model by folder, by alias or fingerprint of the store, or by tag.

    The tag `d12` is the newest model of depth 12, of the store or made by hand with `nanochat
    train` (a chat model before a base model); `sft/d12` or another tag is one made by hand.
    `store` is a URL and `by_hand` a folder; by default those that the command line uses, and with
    a `store` alone that store alone. `tokenizer` is needed only for a folder that has none in
    itself or in `tokenizer/`. `compute_dtype` defaults to float32, or bfloat16 on CUDA, where
    decoding would wait for twice the bytes.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        store: str | None = None,
        by_hand: str | Path | None = None,
        tokenizer: str | Path | None = None,
        device: str = "auto",
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.name, self._store_url = str(name), store
        self._by_hand = None if by_hand is None else Path(by_hand)
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
        found = self._finder().find(self.name)
        return ModelFolders(found.model, found.tokenizer)

    def _finder(self) -> ModelFinder:
        # A user's script is its own entry point, and models are where the command line keeps them.
        environ = os.environ  # noqa: TID251
        by_hand = self._by_hand
        if by_hand is None and self._store_url is None:
            by_hand = by_hand_base(environ)
        store = ArtifactStore(self._store_url or default_store_url(environ))
        return ModelFinder(store, by_hand, self._tokenizer)
