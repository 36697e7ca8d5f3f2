"""The job that exports: a folder that was compared, or none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_tools import lively_model

from nanochat_core.config.execution import Execution
from nanochat_core.config.job import OUTPUTS_FILE, PROGRESS_FILE, JobSpec, StageOutput
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    JobStoppedError,
)
from nanochat_core.export import recipe as export_recipe
from nanochat_core.export.comparing import NEW_TOKENS
from nanochat_core.export.folder import CODE_FILES, CODE_FOLDER
from nanochat_core.export.model_card import CardArtifact, CardMaterial, CardModel
from nanochat_core.export.recipe import ExportRecipe
from nanochat_core.inference.loading import save_model
from nanochat_core.jobs import export
from nanochat_core.jobs.common import StopRequest
from nanochat_core.tokenizer.tokenizer import Tokenizer

RECIPE = ExportRecipe(prompts=4, strings=40)
MATERIAL = CardMaterial(
    name="Ada",
    model_artifact=CardArtifact(
        station="sft", fingerprint="ab" * 32, digest="cd" * 32, created="2026-01-02T03:04:05+00:00"
    ),
    model=CardModel(
        depth=3,
        width=64,
        heads=4,
        kv_heads=2,
        sequence_len=256,
        vocab_size=265,
        window_pattern="SL",
    ),
)


@pytest.fixture
def spec(tmp_path: Path, code_cache: None, monkeypatch: pytest.MonkeyPatch) -> JobSpec:
    """A job on a small model and its tokenizer."""
    for name in ("HF_HUB_OFFLINE", "HF_MODULES_CACHE"):
        monkeypatch.setenv(name, "put back after the test")
    model, tokenizer = lively_model()
    folders = {name: tmp_path / name for name in ("model", "tokenizer", "work", "output")}
    for folder in folders.values():
        folder.mkdir()
    save_model(model, folders["model"], {"tokenizer": tokenizer.identity})
    tokenizer.save(folders["tokenizer"])
    MATERIAL.save(folders["work"])
    return JobSpec(
        station="export",
        recipe=RECIPE.model_dump(mode="json"),
        execution=Execution(),
        inputs={name: str(folders[name]) for name in ("model", "tokenizer")},
        work_folder=str(folders["work"]),
        output_folder=str(folders["output"]),
    )


def run(spec: JobSpec, stop: StopRequest | None = None) -> StageOutput:
    export.main(spec, Ranks.single(), stop or StopRequest())
    return StageOutput.load(Path(spec.output_folder))


def was_published(spec: JobSpec) -> bool:
    return (Path(spec.output_folder) / OUTPUTS_FILE).exists()


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_whole_and_says_how_it_was_compared(spec: JobSpec) -> None:
    output = run(spec)
    folder = Path(spec.output_folder)
    assert set(output.files) | {OUTPUTS_FILE} == files_in(folder)
    assert {"model.safetensors", "config.json", "tokenizer.json", *CODE_FILES} <= set(output.files)
    assert [name for name, role in output.files.items() if role == "record"] == ["README.md"]
    assert output.metrics["prompts"] == RECIPE.prompts
    assert output.metrics["strings"] == RECIPE.strings
    assert output.metrics["greedy_tokens"] == RECIPE.prompts * NEW_TOKENS
    assert float(output.metrics["largest_logit_difference"]) < 1e-5
    assert "largest logit difference" in (folder / "README.md").read_text()
    version = output.provenance["transformers"]
    assert f"compared with the original under transformers {version} and" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    progress = json.loads((Path(spec.work_folder) / PROGRESS_FILE).read_text())
    assert progress["done"] == progress["total"] == RECIPE.prompts


def test_equal_models_make_equal_files(spec: JobSpec, tmp_path: Path) -> None:
    first = run(spec)
    again = spec.model_copy(update={"output_folder": str(tmp_path / "again")})
    Path(again.output_folder).mkdir()
    assert run(again) == first
    for name in first.files:
        left, right = (Path(one.output_folder) / name for one in (spec, again))
        assert left.read_bytes() == right.read_bytes(), name


def test_it_asks_nobody_on_the_network_and_keeps_code_in_its_folder(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    run(spec)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["HF_MODULES_CACHE"] == str(Path(spec.work_folder) / export.CODE_CACHE)


def test_a_model_that_the_code_does_not_say_is_not_published(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (CODE_FOLDER / CODE_FILES[-1]).read_text()
    for name in CODE_FILES:
        (tmp_path / name).write_text((CODE_FOLDER / name).read_text() + "# another\n")
    (tmp_path / CODE_FILES[-1]).write_text(text.replace("* config.qk_scale", "* 1.19"))
    monkeypatch.setattr("nanochat_core.export.folder.CODE_FOLDER", tmp_path)
    with pytest.raises(ExportError, match="logits are not ours"):
        run(spec)
    assert not was_published(spec)


def test_a_stop_request_ends_it_unpublished(spec: JobSpec) -> None:
    stop = StopRequest()
    stop.set("a test")
    with pytest.raises(JobStoppedError, match="starts from the beginning"):
        run(spec, stop)
    assert not was_published(spec)


def test_missing_packages_are_told_before_anything_is_written(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_recipe, "PACKAGES", ("transformers", "no_such_package"))
    with pytest.raises(ConfigError, match=r"no_such_package must be installed: pip install"):
        run(spec)
    assert not list(Path(spec.output_folder).iterdir())


def test_a_tokenizer_of_another_model_is_refused(spec: JobSpec) -> None:
    ranks = [bytes([i]) for i in range(256)][::-1]
    Tokenizer(ranks, lively_model()[1].split_pattern).save(spec.input("tokenizer"))
    with pytest.raises(CheckpointError, match="was trained with the tokenizer"):
        run(spec)


@pytest.mark.parametrize("names", [(), ("model",), ("sft", "rl", "tokenizer")])
def test_inputs_are_one_model_and_its_tokenizer(spec: JobSpec, names: tuple[str, ...]) -> None:
    folder = spec.inputs["model"]
    changed = spec.model_copy(update={"inputs": dict.fromkeys(names, folder)})
    with pytest.raises(ConfigError, match="give one model and its tokenizer"):
        run(changed)


def test_without_material_for_the_card_nothing_starts(spec: JobSpec) -> None:
    (Path(spec.work_folder) / "card.json").unlink()
    with pytest.raises(DataError, match="material of a model card"):
        run(spec)


def test_other_ranks_do_nothing(spec: JobSpec) -> None:
    other: Any = Ranks(rank=1, world_size=2, local_rank=1, device=torch.device("cpu"))
    export.main(spec, other, StopRequest())
    assert not list(Path(spec.output_folder).iterdir())
