"""Folders of runs by hand: continued, refused, replaced, and never half a model."""

from pathlib import Path

import pytest

from flows.by_hand.folders import RunFolder, RunRecord, newest_step
from flows.by_hand.inputs import folder_identity, recorded_places
from nanochat_core.errors import ConfigError, StationBusyError
from nanochat_core.inference.by_hand import check_tag, newest_result


def asked(steps: int = 4, tokens: str = "a") -> RunRecord:
    return RunRecord(
        station="pretrain",
        recipe={"num_iterations": steps, "data": {"seed": 42}},
        inputs={"tokens": tokens},
        places={"tokens": "/somewhere/tokens"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "pretrain" / "d2")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    place = tmp_path / "tokenizer"
    place.mkdir()
    (place / "tokenizer.json").write_text("{}")
    return place


def run(folder: RunFolder, tokenizer: Path, record: RunRecord, *, overwrite: bool = False) -> Path:
    """A run up to where the job would begin."""
    begun = folder.begin(record, overwrite=overwrite)
    return folder.prepare(begun, tokenizer, fresh=overwrite)


def finish(result: Path) -> None:
    (result / "model.safetensors").write_bytes(result.name.encode())
    (result / "outputs.json").write_text("{}")


def leave_checkpoint(folder: RunFolder, step: int) -> Path:
    place = folder.work / "checkpoints" / f"step-{step:08d}-0000abcd"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")
    return place


def test_an_interrupted_run_is_continued(folder: RunFolder, tokenizer: Path) -> None:
    first = run(folder, tokenizer, asked())
    checkpoint = leave_checkpoint(folder, 250)
    assert run(folder, tokenizer, asked()) == first
    assert checkpoint.exists()
    assert newest_step(folder.work) == 250
    assert folder.finished(asked()) is None


def test_a_finished_run_is_not_run_again(folder: RunFolder, tokenizer: Path) -> None:
    result = run(folder, tokenizer, asked())
    finish(result)
    assert folder.finished(asked()) == result
    assert folder.finished(asked(steps=5)) is None


def test_another_run_under_the_same_tag_is_refused_with_what_differs(
    folder: RunFolder, tokenizer: Path
) -> None:
    run(folder, tokenizer, asked())
    leave_checkpoint(folder, 250)
    with pytest.raises(ConfigError, match="num_iterations: 4 there, 5 now"):
        folder.begin(asked(steps=5), overwrite=False)
    with pytest.raises(ConfigError, match="tokens: made from another one"):
        folder.begin(asked(tokens="b"), overwrite=False)


def test_a_run_that_left_nothing_is_in_nobodys_way(folder: RunFolder, tokenizer: Path) -> None:
    run(folder, tokenizer, asked())
    assert folder.begin(asked(steps=5), overwrite=False).recipe["num_iterations"] == 5


def test_a_crash_while_overwriting_leaves_the_earlier_model(
    folder: RunFolder, tokenizer: Path
) -> None:
    first = run(folder, tokenizer, asked())
    finish(first)
    old_checkpoint = leave_checkpoint(folder, 4)
    second = run(folder, tokenizer, asked(steps=5), overwrite=True)
    (second / "model.safetensors").write_bytes(b"half")
    assert newest_result(folder.path) == first
    assert not old_checkpoint.exists()
    # The same command without --overwrite goes on with the second run, and can finish it.
    again = run(folder, tokenizer, asked(steps=5))
    assert again == second
    assert first.exists()
    finish(again)
    folder.clear_older()
    assert newest_result(folder.path) == second
    assert not first.exists()


def test_a_result_without_outputs_is_no_result(folder: RunFolder, tokenizer: Path) -> None:
    result = run(folder, tokenizer, asked())
    (result / "config.json").write_text("{}")
    assert newest_result(folder.path) is None
    assert (result / "tokenizer" / "tokenizer.json").is_file()


def test_one_process_at_a_time(folder: RunFolder) -> None:
    folder.hold()
    with pytest.raises(StationBusyError, match="another process works"):
        folder.hold()


def test_the_places_of_inputs_are_noted(folder: RunFolder, tokenizer: Path) -> None:
    assert recorded_places(folder.path) == {}
    run(folder, tokenizer, asked())
    assert recorded_places(folder.path) == {"tokens": "/somewhere/tokens"}


def test_a_broken_record_is_said(folder: RunFolder) -> None:
    folder.work.mkdir(parents=True)
    (folder.path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"run\.json"):
        folder.begin(asked(), overwrite=False)


def test_identity_of_a_folder_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    before = folder_identity(tmp_path)
    (tmp_path / "a").write_text("one")
    assert folder_identity(tmp_path) == before
    (tmp_path / "a").write_text("two")
    assert folder_identity(tmp_path) != before


@pytest.mark.parametrize("tag", ["", "../d2", "a/b", ".hidden", "a b"])
def test_a_tag_is_a_plain_name(tag: str) -> None:
    with pytest.raises(ConfigError, match="model tag"):
        check_tag(tag)
