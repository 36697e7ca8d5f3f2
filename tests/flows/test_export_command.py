"""What `nanochat export` refuses before it starts anything, and how it copies an export out."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.exporting.command import check_free, copy_out, loading_lines
from flows.exporting.inputs import model_ref, tokenizer_ref
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import LOG_FILE, Role, StageOutput
from nanochat_core.errors import ConfigError

Metrics = dict[str, float | int | str]
FILES: dict[str, Role] = {
    "config.json": "result",
    "parts/first.bin": "result",
    "README.md": "record",
    LOG_FILE: "record",
}


MODEL_CONFIG = (
    '{"model": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_kv_head": 2, "sequence_len": 128,'
    ' "vocab_size": 512, "window_pattern": "SSSL"}}'
)


def publish(
    store: ArtifactStore,
    folder: Path,
    station: str,
    files: dict[str, Role],
    metrics: Metrics | None = None,
    **inputs: ArtifactRef,
) -> ArtifactRef:
    """An artifact whose files hold the name of the station, or the description of a model."""
    made = folder / f"made-{station}"
    for name in files:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        text = MODEL_CONFIG if station == "pretrain" else station
        (made / name).write_text(text, encoding="utf-8")
    digests = {name: ref.digest for name, ref in inputs.items()}
    request = Request(station=station, code_version=1, recipe={"depth": 2}, inputs=digests)
    output = StageOutput(files=files, metrics=metrics or {})
    return store.publish(request, made, output, input_refs=inputs)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def exported(store: ArtifactStore, tmp_path: Path) -> ArtifactRef:
    files: dict[str, Role] = {"config.json": "result"}
    tokenizer = publish(store, tmp_path, "tokenizer", files)
    model = publish(store, tmp_path, "pretrain", files, tokenizer=tokenizer)
    inputs = {"model": model, "tokenizer": tokenizer}
    return publish(store, tmp_path, "export", FILES, {"prompts": 100}, **inputs)


def test_a_copy_holds_the_export_and_no_log(
    store: ArtifactStore, exported: ArtifactRef, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "model"
    copy_out(store, exported, folder)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == FILES.keys() - {LOG_FILE}
    (folder / "README.md").write_text("changed", encoding="utf-8")
    assert store.verify(exported) == []
    assert os.listdir(folder.parent) == ["model"]


def test_a_copy_has_a_card_with_scores_that_are_newer_than_the_export(
    store: ArtifactStore, exported: ArtifactRef, tmp_path: Path
) -> None:
    pages = []
    for name in ("before", "after"):
        copy_out(store, exported, tmp_path / name)
        pages.append((tmp_path / name / "README.md").read_text(encoding="utf-8"))
        measured = store.manifest(exported).input_refs["model"]
        files: dict[str, Role] = {"scores.csv": "result"}
        publish(store, tmp_path, "base_eval", files, {"val/bpb": 1.25}, pretrain=measured)
    assert "This model was not evaluated." in pages[0]
    assert "1.25" in pages[1]
    for page in pages:
        assert "| prompts | 100 |" in page


def test_an_empty_folder_is_filled(
    store: ArtifactStore, exported: ArtifactRef, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    copy_out(store, exported, folder)
    assert (folder / "config.json").read_text(encoding="utf-8") == "export"
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "parts"]


def test_a_folder_that_was_used_meanwhile_stays_as_it_is(
    store: ArtifactStore, exported: ArtifactRef, tmp_path: Path
) -> None:
    folder = tmp_path / "used"
    folder.mkdir()
    (folder / "config.json").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not empty \(it holds config\.json\)"):
        copy_out(store, exported, folder)
    assert (folder / "config.json").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(ConfigError, match="is no folder; give a new one"):
            check_free(tmp_path / name)
    check_free(tmp_path / "new")


def test_the_tokenizer_is_that_of_the_lineage(store: ArtifactStore, tmp_path: Path) -> None:
    files: dict[str, Role] = {"config.json": "result"}
    tokenizer = publish(store, tmp_path, "tokenizer", files)
    base = publish(store, tmp_path, "pretrain", files, tokenizer=tokenizer)
    chat = publish(store, tmp_path, "sft", files, pretrain=base)
    assert tokenizer_ref(store, chat) == tokenizer
    alone = publish(store, tmp_path, "rl", files)
    with pytest.raises(ConfigError, match="does not say which tokenizer"):
        tokenizer_ref(store, alone)


def test_the_folder_of_a_model_is_not_exported(store: ArtifactStore, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="only models of the store"):
        model_ref(store, str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--output", "{used}"), 2, "is not empty"),
        (("--device", "tpu"), 2, "--device 'tpu'; there is auto, cuda, mps, cpu"),
        (("--dtype", "int4"), 2, "--dtype 'int4'; there is float32, bfloat16"),
        (("d7",), 1, "no model d7"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    arguments: tuple[str, ...], code: int, message: str, store: ArtifactStore, tmp_path: Path
) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("", encoding="utf-8")
    publish(store, tmp_path, "pretrain", {"config.json": "result"})
    given = [argument.format(used=used) for argument in arguments]
    result = CliRunner().invoke(app, ["export", *given, "--store", str(tmp_path / "store")])
    assert result.exit_code == code
    assert message in result.output
    assert "starting Prefect" not in result.output


def test_the_end_says_how_it_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "it's"
    loading = [line for line in loading_lines(folder) if "from_pretrained" in line]
    assert len(loading) == 2
    for line in loading:
        assert f"from_pretrained({str(folder)!r}, trust_remote_code=True)" in line
