"""What the name of a model stands for: a folder, a model of the store, or one made by hand.

Torch-free, for the command line too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.errors import ArtifactNotFoundError, CheckpointError
from nanochat_core.inference.by_hand import (
    TOKENIZER_FOLDER,
    ByHandModel,
    find_by_hand,
    list_by_hand,
    newest_result,
)

CHAT_STATIONS = ("rl", "sft", "pretrain")
"""Stations that make models, the most finished first."""
MODEL_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"
"""What a folder of a model and one of a tokenizer are known by."""
_DEPTH_TAG = re.compile(r"d(?P<depth>[1-9][0-9]*)")


@dataclass(frozen=True)
class FoundModel:
    """Folders of a model and its tokenizer; `ref` when it lies in the store."""

    kind: str
    model: Path
    tokenizer: Path
    ref: ArtifactRef | None = None


@dataclass(frozen=True)
class ModelFinder:
    """Looks for models by name in a store and among those made by hand."""

    store: ArtifactStore
    by_hand: Path | None = None
    tokenizer: Path | None = None
    kinds: Sequence[str] = CHAT_STATIONS

    def find(self, name: str) -> FoundModel:
        """The model of a folder, alias, `station/fingerprint`, `kind/tag` or tag.

        A tag is the depth of a model of the store (`d12`), or what a model made by hand is called;
        the newest of both, a finished chat model before a base model. Raises
        ArtifactNotFoundError for a name that stands for nothing, CheckpointError for no model.
        """
        # A folder that happens to be called like an alias is meant with ./ before its name.
        if name in self.store.aliases():
            return self._of_ref(self.store.resolve(name), name)
        if folder := _folder_of(name):
            return self._of_folder(folder)
        kind, _, tag = name.rpartition("/")
        kinds = self.kinds if not kind else [k for k in self.kinds if k == kind]
        if found := self._of_tag(kinds, tag, depth=None if kind else _depth_of(name)):
            return found
        if _depth_of(name) is not None:
            raise self._no_such_depth(name)
        return self._of_ref(self.store.resolve(name), name)

    def newest(self) -> FoundModel:
        """The newest model of the first kind that has any; ArtifactNotFoundError."""
        for kind in self.kinds:
            ref = self._newest_finished(self.store.list(kind))
            made = list_by_hand(self.by_hand, kind) if self.by_hand else []
            if found := self._newer(ref, made[-1] if made else None):
                return found
        raise ArtifactNotFoundError(
            f"there is no model of {' or '.join(self.kinds)} in {self.store.url}"
            f"{f' or {self.by_hand}' if self.by_hand else ''}; make one first, or name a folder"
        )

    def _of_folder(self, folder: Path) -> FoundModel:
        place = folder if (folder / MODEL_FILE).is_file() else newest_result(folder)
        if place is None or not (place / MODEL_FILE).is_file():
            raise CheckpointError(
                f"{folder} has no {MODEL_FILE}; give a folder that pretrain, sft or rl published"
            )
        kind = next((k for k in CHAT_STATIONS if k in place.absolute().parts[-3:-2]), "")
        return FoundModel(kind, place, self.tokenizer or _tokenizer_beside(place))

    def _of_tag(self, kinds: Sequence[str], tag: str, depth: int | None) -> FoundModel | None:
        for kind in kinds:
            made = find_by_hand(self.by_hand, kind, tag) if self.by_hand else None
            ref = None if depth is None else self._newest_of_depth(kind, depth)
            if found := self._newer(ref, made):
                return found
        return None

    def _newer(self, ref: ArtifactRef | None, made: ByHandModel | None) -> FoundModel | None:
        if made and (ref is None or made.created >= self.store.manifest(ref).created):
            return FoundModel(made.kind, made.folder, self.tokenizer or made.tokenizer)
        return None if ref is None else self._of_ref(ref, ref.short)

    def _of_ref(self, ref: ArtifactRef, name: str) -> FoundModel:
        """The model of an artifact, or the one of our kinds that it was made from."""
        wanted: ArtifactRef | None = ref
        while wanted is not None and wanted.station not in self.kinds:
            wanted = self._base(wanted)
        if wanted is None:
            raise CheckpointError(
                f"{name!r} is {ref.short}, which is no model; name one of the stations "
                f"{', '.join(self.kinds)}"
            )
        tokenizer = self.tokenizer or self.store.materialize(self._tokenizer_ref(wanted))
        return FoundModel(wanted.station, self.store.materialize(wanted), tokenizer, wanted)

    def _base(self, ref: ArtifactRef) -> ArtifactRef | None:
        """The model that a model (not any other artifact) was made from."""
        if ref.station not in CHAT_STATIONS:
            return None
        inputs = self.store.manifest(ref).input_refs
        return next((inputs[kind] for kind in CHAT_STATIONS if kind in inputs), None)

    def _tokenizer_ref(self, ref: ArtifactRef) -> ArtifactRef:
        """The tokenizer that a model was made with, by its lineage."""
        place: ArtifactRef | None = ref
        while place is not None:
            inputs = self.store.manifest(place).input_refs
            if "tokenizer" in inputs:
                return inputs["tokenizer"]
            place = self._base(place)
        raise CheckpointError(
            f"{ref.short} does not say which tokenizer it was made with; give the folder of the "
            "tokenizer, too"
        )

    def _newest_of_depth(self, kind: str, depth: int) -> ArtifactRef | None:
        refs = self.store.list(kind)
        return self._newest_finished([ref for ref in refs if self._depth(ref) == depth])

    def _newest_finished(self, refs: Sequence[ArtifactRef]) -> ArtifactRef | None:
        """The newest model whose rates were lowered to its end, else the newest.

        Others are mostly beginnings that runs of several lengths share.
        """
        finished = (ref for ref in reversed(refs) if not self._is_trunk(ref))
        return next(finished, refs[-1] if refs else None)

    def _is_trunk(self, ref: ArtifactRef) -> bool:
        schedule = self.store.manifest(ref).recipe.get("schedule", {})
        return ref.station == "pretrain" and schedule.get("warmdown_fraction") == 0

    def _depth(self, ref: ArtifactRef) -> int:
        """Depth of a model, from the recipe of the pretraining in its lineage."""
        base = self._base(ref)
        return self._depth(base) if base else int(self.store.manifest(ref).recipe["depth"])

    def _no_such_depth(self, name: str) -> ArtifactNotFoundError:
        depths = {self._depth(ref) for kind in self.kinds for ref in self.store.list(kind)}
        tags = {f"d{depth}" for depth in depths}
        for kind in self.kinds if self.by_hand else ():
            assert self.by_hand is not None, "the loop is empty without it"
            tags |= {model.folder.parent.name for model in list_by_hand(self.by_hand, kind)}
        return ArtifactNotFoundError(
            f"no model {name} of {' or '.join(self.kinds)} in {self.store.url}"
            f"{f' or {self.by_hand}' if self.by_hand else ''}; there are: "
            f"{', '.join(sorted(tags)) or 'none'}. Train one with --depth {name[1:]}, or name "
            "another model"
        )


def _folder_of(name: str) -> Path | None:
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # longer than any name may be; ~ of a user that is not there
        return None


def _depth_of(name: str) -> int | None:
    match = _DEPTH_TAG.fullmatch(name)
    return None if match is None else int(match["depth"])


def _tokenizer_beside(folder: Path) -> Path:
    for place in (folder, folder / TOKENIZER_FOLDER):
        if (place / TOKENIZER_FILE).is_file():
            return place
    raise CheckpointError(
        f"{folder} has no tokenizer ({TOKENIZER_FILE}) in itself or in {TOKENIZER_FOLDER}/; give "
        "CheckpointManager(folder, tokenizer=...) or --tokenizer the one that the model was "
        "trained with"
    )
