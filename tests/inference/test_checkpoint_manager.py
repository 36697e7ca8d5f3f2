"""Models by name: alias, fingerprint, depth tag; with the tokenizer of their lineage."""

from pathlib import Path

import pytest

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ArtifactNotFoundError, CheckpointError
from nanochat_core.inference import CheckpointManager
from nanochat_core.inference.loading import save_model
from tests.inference.scripted import bigram_model, byte_tokenizer

TOKENIZER = byte_tokenizer()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def publish(
    store: ArtifactStore, folder: Path, station: str, recipe: dict, inputs: dict[str, ArtifactRef]
) -> ArtifactRef:
    request = Request(
        station=station,
        code_version=1,
        recipe=recipe,
        inputs={name: ref.digest for name, ref in inputs.items()},
    )
    files = {path.name: "result" for path in folder.iterdir()}
    return store.publish(request, folder, StageOutput(files=files), input_refs=inputs)


@pytest.fixture
def line(store: ArtifactStore, tmp_path: Path) -> dict[str, ArtifactRef]:
    """A tokenizer, a base model of depth 1 and a chat model made from it."""
    TOKENIZER.save(tmp_path / "tokenizer")
    refs = {"tokenizer": publish(store, tmp_path / "tokenizer", "tokenizer", {}, {})}
    for station, inputs in (("pretrain", ["tokenizer"]), ("sft", ["pretrain"])):
        save_model(bigram_model(TOKENIZER, {}), tmp_path / station, {"made_by": station})
        recipe = {"depth": 1} if station == "pretrain" else {}
        given = {name: refs[name] for name in inputs}
        refs[station] = publish(store, tmp_path / station, station, recipe, given)
    store.set_alias("latest", refs["sft"])
    return refs


def test_names_of_a_model(store: ArtifactStore, line: dict[str, ArtifactRef]) -> None:
    base = line["pretrain"].fingerprint
    names = {"latest": "sft", "d1": "sft", f"pretrain/{base[:8]}": "pretrain", base: "pretrain"}
    for name, station in names.items():
        model, config = CheckpointManager(name, store=store.url, device="cpu").load()
        assert config["made_by"] == station
        assert model.tokenizer.vocab_size == TOKENIZER.vocab_size


def test_names_of_no_model(store: ArtifactStore, line: dict[str, ArtifactRef]) -> None:
    with pytest.raises(ArtifactNotFoundError, match="d1"):
        CheckpointManager("d12", store=store.url, device="cpu").find()
    with pytest.raises(ArtifactNotFoundError, match="latest"):
        CheckpointManager("lastest", store=store.url, device="cpu").find()
    with pytest.raises(CheckpointError, match="no model"):
        CheckpointManager(line["tokenizer"].short, store=store.url, device="cpu").find()
