"""Names that people type, as folders: tokens, tokenizers, shards, benchmarks, models, bundles."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.errors import ArtifactNotFoundError, ConfigError
from nanochat_core.inference.finding import FoundModel, ModelFinder

RECORD_FILE = "run.json"
"""Beside the results of a run by hand: what was asked for, and the places of its inputs."""
_KNOWN_BY = {
    "tokens": "tokens.json",
    "tokenizer": "tokenizer.json",
    "shards": "shards.json",
    "eval_bundle": "core.yaml",
    "benchmarks": "",
}
"""The file by which the folder of an input is known; '' is any folder."""
_HASHED_BYTES = 2**28
"""Larger files of a folder without a manifest are told apart by size and time alone."""


@dataclass(frozen=True)
class Source:
    """The folder of one input, and what tells its content from others."""

    folder: Path
    identity: str
    ref: ArtifactRef | None = None


@dataclass(frozen=True)
class Inputs:
    """Finds inputs in folders, in the store, and in the lineage of what was found before."""

    store: ArtifactStore
    by_hand: Path

    def named(self, kind: str, text: str) -> Source:
        """A folder, or an artifact of `kind`, or the one in the lineage of what is named."""
        folder = Path(text).expanduser()
        if folder.is_dir():
            return self.of_folder(kind, folder)
        ref = self.store.resolve(text)
        found = ref if ref.station == kind else self._ancestor(ref, kind)
        if found is None:
            raise ConfigError(
                f"{text!r} is {ref.short}, which is no {kind} and was not made from any; name an "
                "artifact (nanochat artifacts ls) or a folder"
            )
        return self.of_ref(found)

    def newest(self, kind: str) -> Source | None:
        """The newest artifact of a station."""
        refs = self.store.list(kind)
        return self.of_ref(refs[-1]) if refs else None

    def model(self, name: str, kinds: tuple[str, ...], tokenizer: str = "") -> FoundModel:
        """The model of a name, or the newest of `kinds`."""
        own = self.named("tokenizer", tokenizer).folder if tokenizer else None
        finder = ModelFinder(self.store, self.by_hand, own, kinds)
        return finder.find(name) if name else finder.newest()

    def model_source(self, model: FoundModel) -> Source:
        """A model as an input of the next station."""
        if model.ref is not None:
            return Source(model.model, model.ref.digest, model.ref)
        return Source(model.model, folder_identity(model.model), None)

    def of_lineage(self, model: FoundModel, kind: str) -> Source | None:
        """The tokens or shards that a model was trained on, as far as that is known."""
        if model.ref is not None:
            ref = self._ancestor(model.ref, kind)
            return None if ref is None else self.of_ref(ref)
        place = recorded_places(model.model.parent).get(kind, "")
        return self.of_folder(kind, Path(place)) if place and Path(place).is_dir() else None

    def beside(self, source: Source, kind: str) -> Source | None:
        """What an artifact was made from, or a folder of that name beside a folder."""
        if source.ref is not None:
            ref = self._ancestor(source.ref, kind)
            return None if ref is None else self.of_ref(ref)
        place = source.folder.parent / kind
        return self.of_folder(kind, place) if (place / _KNOWN_BY[kind]).is_file() else None

    def of_ref(self, ref: ArtifactRef) -> Source:
        """An artifact, its files verified."""
        return Source(self.store.materialize(ref), ref.digest, ref)

    def of_folder(self, kind: str, folder: Path) -> Source:
        """A folder, once it has the file by which its kind is known."""
        known_by = _KNOWN_BY[kind]
        if known_by and not (folder / known_by).is_file():
            raise ConfigError(f"{folder} holds no {known_by}, so it is no folder of {kind}")
        return Source(folder.absolute(), folder_identity(folder))

    def _ancestor(self, ref: ArtifactRef, kind: str) -> ArtifactRef | None:
        """The nearest artifact of a station among all that `ref` was made from."""
        generation = [ref]
        while generation:
            inputs = [self.store.manifest(one).input_refs for one in generation]
            if found := next((refs[kind] for refs in inputs if kind in refs), None):
                return found
            generation = [parent for refs in inputs for parent in refs.values()]
        return None


def folder_identity(folder: Path) -> str:
    """sha256 over the names and bytes of the files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        state = path.stat()
        digest.update(f"{path.relative_to(folder).as_posix()} {state.st_size} ".encode())
        if state.st_size > _HASHED_BYTES:
            digest.update(f"{state.st_mtime_ns}\n".encode())
            continue
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def recorded_places(folder: Path) -> dict[str, str]:
    """Input name -> folder, as a run by hand noted them; empty where there is no such note."""
    path = folder / RECORD_FILE
    if not path.is_file():
        return {}
    return dict(json.loads(path.read_bytes())["places"])


def tokens_and_tokenizer(inputs: Inputs, tokens: str, tokenizer: str) -> dict[str, Source]:
    """The two inputs of pretraining, which fit each other as far as their lineage tells."""
    given = inputs.named("tokenizer", tokenizer) if tokenizer else None
    found = inputs.named("tokens", tokens) if tokens else _newest_tokens(inputs, given)
    own = given or inputs.beside(found, "tokenizer")
    if own is None:
        raise ConfigError(
            f"{found.folder} does not say which tokenizer made it; name that with --tokenizer"
        )
    return {"tokens": found, "tokenizer": own}


def _newest_tokens(inputs: Inputs, tokenizer: Source | None) -> Source:
    for ref in reversed(inputs.store.list("tokens")):
        own = inputs.store.manifest(ref).inputs.get("tokenizer")
        if tokenizer is None or tokenizer.identity == own:
            return inputs.of_ref(ref)
    fitting = " of that tokenizer" if tokenizer else ""
    raise ArtifactNotFoundError(
        f"{inputs.store.url} has no tokens{fitting}; make some with: nanochat run demo "
        "--stop-after tokens, or name a folder with --tokens"
    )
