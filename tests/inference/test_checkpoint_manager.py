"""Models by name: alias, fingerprint, depth tag; with the tokenizer of their lineage."""

import os
from pathlib import Path

import pytest

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ArtifactNotFoundError, CheckpointError
from nanochat_core.inference import CheckpointManager
from nanochat_core.inference.finding import ModelFinder
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
    for name in ("~nobody-at-all", "x" * 5000):
        with pytest.raises(ArtifactNotFoundError):
            CheckpointManager(name, store=store.url, device="cpu").find()
    with pytest.raises(CheckpointError, match="no model"):
        CheckpointManager(line["tokenizer"].short, store=store.url, device="cpu").find()


def test_a_shared_beginning_is_taken_only_where_nothing_else_is(
    store: ArtifactStore, tmp_path: Path
) -> None:
    TOKENIZER.save(tmp_path / "tokenizer")
    inputs = {"tokenizer": publish(store, tmp_path / "tokenizer", "tokenizer", {}, {})}
    save_model(bigram_model(TOKENIZER, {}), tmp_path / "model", {})

    def trained(steps: int, warmdown: float) -> ArtifactRef:
        schedule = {"warmdown_fraction": warmdown}
        recipe = {"depth": 1, "num_iterations": steps, "schedule": schedule}
        return publish(store, tmp_path / "model", "pretrain", recipe, inputs)

    finder = ModelFinder(store)
    alone = trained(1, 0.0)
    assert finder.find("d1").ref == finder.newest().ref == alone
    finished = trained(20, 0.4)
    for steps in range(2, 6):
        trained(steps, 0.0)
    assert store.list("pretrain")[-1] != finished
    assert finder.find("d1").ref == finder.newest().ref == finished


def make_by_hand(
    base: Path, kind: str, tag: str, number: int = 1, *, finished: bool = True
) -> Path:
    """A model as `nanochat train` leaves it."""
    folder = base / kind / tag / f"model-{number:06d}"
    save_model(bigram_model(TOKENIZER, {}), folder, {"made_by": f"{kind} {tag} {number}"})
    (folder / "tokenizer").mkdir()
    TOKENIZER.save(folder / "tokenizer")
    if finished:
        (folder / "outputs.json").write_text("{}")
    return folder


def loaded(name: object, **places: object) -> str:
    _, config = CheckpointManager(str(name), device="cpu", **places).load()
    return str(config["made_by"])


def test_a_model_made_by_hand_is_found_by_its_tag_and_folder(
    store: ArtifactStore, tmp_path: Path
) -> None:
    base = tmp_path / "by-hand"
    make_by_hand(base, "pretrain", "d3")
    make_by_hand(base, "pretrain", "mine")
    places = {"store": store.url, "by_hand": base}
    assert loaded("d3", **places) == "pretrain d3 1"
    assert loaded("mine", **places) == "pretrain mine 1"
    assert loaded(base / "pretrain" / "d3", store=store.url) == "pretrain d3 1"
    make_by_hand(base, "sft", "d3")
    assert loaded("d3", **places) == "sft d3 1"
    assert loaded("pretrain/d3", **places) == "pretrain d3 1"


def test_an_unfinished_model_made_by_hand_is_none(store: ArtifactStore, tmp_path: Path) -> None:
    base = tmp_path / "by-hand"
    make_by_hand(base, "pretrain", "d3", 1)
    make_by_hand(base, "pretrain", "d3", 2, finished=False)
    make_by_hand(base, "sft", "d3", 1, finished=False)
    places = {"store": store.url, "by_hand": base}
    assert loaded("d3", **places) == "pretrain d3 1"
    (base / "pretrain" / "d3" / "model-000002" / "outputs.json").write_text("{}")
    assert loaded("d3", **places) == "pretrain d3 2"


def test_a_tag_is_the_newest_of_store_and_by_hand(
    store: ArtifactStore, line: dict[str, ArtifactRef], tmp_path: Path
) -> None:
    base = tmp_path / "by-hand"
    places = {"store": store.url, "by_hand": base}
    made = make_by_hand(base, "sft", "d1")
    os.utime(made / "outputs.json", (0, 0))
    assert loaded("d1", **places) == "sft"
    os.utime(made / "outputs.json")
    assert loaded("d1", **places) == "sft d1 1"
    assert loaded("d1", store=store.url) == "sft"
    assert loaded("latest", **places) == "sft"
    with pytest.raises(ArtifactNotFoundError, match="there are: d1"):
        CheckpointManager("d12", device="cpu", **places).find()


def test_by_default_models_are_where_the_command_line_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.delenv("NANOCHAT_STORE", raising=False)
    make_by_hand(tmp_path / "by-hand", "pretrain", "d3")
    assert loaded("d3") == "pretrain d3 1"
