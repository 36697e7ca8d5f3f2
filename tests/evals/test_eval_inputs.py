"""What is given is measured: bits per byte, tasks, or both."""

import csv
import io
import json
import zipfile
from pathlib import Path

import pytest
from eval_tools import choice_rows, make_model, make_tokenizer, write_bundle

from nanochat_core.config.execution import Execution
from nanochat_core.config.job import JobSpec, StageOutput
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError, DataError
from nanochat_core.evals.bundle_places import open_bundle
from nanochat_core.evals.recipes import BaseEvalRecipe
from nanochat_core.inference.loading import save_model
from nanochat_core.jobs import base_eval
from nanochat_core.jobs.common import StopRequest


def make_bundle(folder: Path) -> Path:
    tasks = [
        {"label": label, "icl_task_type": "multiple_choice", "rows": choice_rows(8)}
        for label in ("one", "two")
    ]
    write_bundle(folder, tasks)
    return folder


def evaluate(folder: Path, **inputs: Path) -> Path:
    """The output of a job with a random model and these inputs."""
    save_model(make_model(), folder / "model", {})
    (folder / "tokenizer").mkdir()
    make_tokenizer().save(folder / "tokenizer")
    for name in ("work", "output"):
        (folder / name).mkdir()
    inputs = {"pretrain": folder / "model", "tokenizer": folder / "tokenizer", **inputs}
    spec = JobSpec(
        station="base_eval",
        recipe=BaseEvalRecipe(sample_tokens=0, compute_dtype="float32").model_dump(mode="json"),
        execution=Execution(device="cpu"),
        inputs={name: str(path) for name, path in inputs.items()},
        work_folder=str(folder / "work"),
        output_folder=str(folder / "output"),
    )
    base_eval.main(spec, Ranks.single(), StopRequest())
    return folder / "output"


def test_a_given_bundle_alone_is_asked(tmp_path: Path) -> None:
    output = evaluate(tmp_path, eval_bundle=make_bundle(tmp_path / "bundle"))
    outputs = StageOutput.load(output)
    assert set(outputs.metrics) == {"demo_score", "demo_score/stderr"}
    scores = json.loads((output / "scores.json").read_bytes())
    rows = list(csv.DictReader(io.StringIO((output / "core.csv").read_text())))
    assert [row["task"] for row in rows] == ["one", "two", "demo_score"]
    for row in rows[:2]:
        summary = scores["tasks"][row["task"]]
        for column in ("accuracy", "accuracy_stderr", "centered", "centered_stderr"):
            assert float(row[column]) == pytest.approx(summary[column], abs=5e-5)
    assert float(rows[2]["centered"]) == pytest.approx(scores["demo_score"], abs=5e-5)
    assert outputs.files["core.csv"] == "record"


def test_a_bundle_is_found_in_a_folder_and_in_a_zip(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "eval_bundle")
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        for path in sorted(bundle.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    for given in (bundle, tmp_path, tmp_path / "bundle.zip", tmp_path / "bundle.zip"):
        folder, found = open_bundle(str(given), tmp_path / "base")
        assert [task.label for task in found.tasks] == ["one", "two"]
        assert not found.is_official
        assert (folder / "core.yaml").is_file()


def test_what_is_no_bundle_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"core\.yaml"):
        open_bundle(str(tmp_path / "nowhere"), tmp_path)
    (tmp_path / "bundle.zip").write_text("no zip")
    with pytest.raises(DataError, match="zip"):
        open_bundle(str(tmp_path / "bundle.zip"), tmp_path)
