"""Names of inputs: folders, artifacts, and what lies in the lineage of what is named."""

import json
from pathlib import Path

import pytest

from flows.by_hand.inputs import Inputs, tokens_and_tokenizer
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ArtifactNotFoundError, CheckpointError, ConfigError

FILES = {
    "shards": "shards.json",
    "tokenizer": "tokenizer.json",
    "tokens": "tokens.json",
    "pretrain": "config.json",
    "sft": "config.json",
}
MADE_FROM = {
    "shards": (),
    "tokenizer": ("shards",),
    "tokens": ("shards", "tokenizer"),
    "pretrain": ("tokens", "tokenizer"),
    "sft": ("pretrain", "tokenizer", "shards"),
}


class Line:
    """Artifacts with the lineage of a real line, and nothing much in them."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, ArtifactStore(str(root / "store"))
        self.inputs = Inputs(self.store, root / "by-hand")

    def publish(self, version: int) -> dict[str, ArtifactRef]:
        refs: dict[str, ArtifactRef] = {}
        for station, made_from in MADE_FROM.items():
            folder = self.root / f"{station}-{version}"
            folder.mkdir()
            (folder / FILES[station]).write_text(json.dumps({"version": version}))
            own = {name: refs[name] for name in made_from}
            request = Request(
                station=station,
                code_version=1,
                recipe={"depth": 2, "version": version},
                inputs={name: ref.digest for name, ref in own.items()},
            )
            output = StageOutput(files={FILES[station]: "result"})
            refs[station] = self.store.publish(request, folder, output, input_refs=own)
        return refs


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def version(folder: Path, kind: str) -> int:
    return int(json.loads((folder / FILES[kind]).read_bytes())["version"])


def test_tokens_bring_their_tokenizer(line: Line) -> None:
    refs = line.publish(1)
    for name in ("", refs["tokens"].short, refs["pretrain"].short):
        found = tokens_and_tokenizer(line.inputs, name, "")
        assert found["tokens"].identity == refs["tokens"].digest
        assert found["tokenizer"].identity == refs["tokenizer"].digest


def test_the_newest_tokens_of_a_given_tokenizer(line: Line) -> None:
    first, _ = line.publish(1), line.publish(2)
    found = tokens_and_tokenizer(line.inputs, "", first["tokenizer"].short)
    assert version(found["tokens"].folder, "tokens") == 1


def test_an_empty_store_is_said(line: Line) -> None:
    with pytest.raises(ArtifactNotFoundError, match="has no tokens"):
        tokens_and_tokenizer(line.inputs, "", "")


def test_folders_are_taken_as_they_are(line: Line, tmp_path: Path) -> None:
    for kind in ("tokens", "tokenizer"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / FILES[kind]).write_text("{}")
    found = tokens_and_tokenizer(line.inputs, str(tmp_path / "tokens"), "")
    assert found["tokenizer"].folder == tmp_path / "tokenizer"
    with pytest.raises(ConfigError, match=r"no tokens\.json"):
        line.inputs.named("tokens", str(tmp_path / "tokenizer"))


def test_a_name_leads_to_the_input_in_its_lineage(line: Line) -> None:
    refs = line.publish(1)
    line.store.set_alias("latest", refs["sft"])
    for kind in ("tokens", "tokenizer", "shards"):
        assert line.inputs.named(kind, "latest").identity == refs[kind].digest
    with pytest.raises(ConfigError, match="no tokens"):
        line.inputs.named("tokens", refs["shards"].short)


def test_a_base_model_is_found_from_what_was_made_of_it(line: Line) -> None:
    refs = line.publish(1)
    line.store.set_alias("latest", refs["sft"])
    for name in ("latest", "d2", "", refs["sft"].short):
        model = line.inputs.model(name, ("pretrain",))
        assert model.ref == refs["pretrain"]
        source = line.inputs.of_lineage(model, "shards")
        assert source is not None
        assert source.identity == refs["shards"].digest
    with pytest.raises(CheckpointError, match="no model"):
        line.inputs.model(refs["tokens"].short, ("pretrain",))


def test_the_inputs_of_a_model_made_by_hand_are_those_of_its_record(line: Line) -> None:
    refs = line.publish(1)
    shards = line.store.materialize(refs["shards"])
    folder = line.root / "by-hand" / "pretrain" / "mine"
    (folder / "model-000001" / "tokenizer").mkdir(parents=True)
    (folder / "model-000001" / "tokenizer" / "tokenizer.json").write_text("{}")
    for name in ("config.json", "outputs.json"):
        (folder / "model-000001" / name).write_text("{}")
    (folder / "run.json").write_text(json.dumps({"places": {"shards": str(shards)}}))
    model = line.inputs.model("mine", ("pretrain",))
    assert model.model == folder / "model-000001"
    found = line.inputs.of_lineage(model, "shards")
    assert found is not None
    assert found.folder == shards
    assert line.inputs.of_lineage(model, "tokens") is None
