"""Benchmark files: what a folder holds, by content, and the copy of exactly that."""

import hashlib
from pathlib import Path

import pytest

from nanochat_core.data.benchmark_files import (
    OwnFile,
    copy_benchmark_files,
    resolve_benchmark_files,
    resolve_own_files,
)
from nanochat_core.data.recipes import BenchmarksRecipe
from nanochat_core.errors import DataError
from nanochat_core.logs import Progress

KNOWN = ("gsm8k-test.jsonl", "mmlu-test.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    given = tmp_path / "given"
    given.mkdir()
    (given / "gsm8k-test.jsonl").write_bytes(b"rows")
    (given / "notes.txt").write_text("not a benchmark")
    return given


def copied(folder: Path, output: Path) -> dict[str, bytes]:
    recipe = resolve_benchmark_files(str(folder), KNOWN)
    output.mkdir()
    made = copy_benchmark_files(recipe, str(folder), str(output), Progress(None, 0, "files"))
    assert set(made.files.values()) == {"result"}
    return {name: (output / name).read_bytes() for name in made.files}


def test_only_known_files_are_taken_by_their_content(folder: Path) -> None:
    (file,) = resolve_benchmark_files(str(folder), KNOWN).files
    assert (file.name, file.bytes) == ("gsm8k-test.jsonl", 4)
    assert file.sha256 == hashlib.sha256(b"rows").hexdigest()


def test_a_url_is_as_good_as_a_path(folder: Path) -> None:
    by_url = resolve_benchmark_files(f"file://{folder}/", KNOWN)
    assert by_url == resolve_benchmark_files(str(folder), KNOWN)


def test_the_copy_is_what_was_planned(folder: Path, tmp_path: Path) -> None:
    assert copied(folder, tmp_path / "out") == {"gsm8k-test.jsonl": b"rows"}


def test_a_file_that_changed_meanwhile_is_refused(folder: Path, tmp_path: Path) -> None:
    recipe = resolve_benchmark_files(str(folder), KNOWN)
    (folder / "gsm8k-test.jsonl").write_bytes(b"sown")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"gsm8k-test\.jsonl changed since it was planned"):
        copy_benchmark_files(recipe, str(folder), str(tmp_path / "out"), Progress(None, 0, "files"))


@pytest.mark.parametrize("place", ["nothing/here", "empty"])
def test_a_folder_without_benchmarks_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="benchmark"):
        resolve_benchmark_files(str(tmp_path / place), KNOWN)


def test_own_files_are_copied_from_where_each_of_them_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "me.jsonl").write_bytes(b"what I said")
    own = (OwnFile.parse(f"file://{tmp_path}/mine/me.jsonl@3"),)
    found = resolve_benchmark_files(str(folder), KNOWN).files
    recipe = BenchmarksRecipe(files=(*found, *resolve_own_files(own, KNOWN)))
    output = tmp_path / "out"
    output.mkdir()
    made = copy_benchmark_files(recipe, str(folder), str(output), Progress(None, 0, ""), own)
    assert list(made.files) == ["gsm8k-test.jsonl", "me.jsonl"]
    assert (output / "me.jsonl").read_bytes() == b"what I said"


@pytest.mark.parametrize(
    ("text", "place", "epochs"),
    [
        ("me.jsonl", "me.jsonl", 1.0),
        ("me.jsonl@2", "me.jsonl", 2.0),
        ("s3://b/me@2/me.parquet@0.5", "s3://b/me@2/me.parquet", 0.5),
        ("https://host/me.jsonl.gz", "https://host/me.jsonl.gz", 1.0),
    ],
)
def test_a_number_behind_a_file_is_how_often_it_is_used(
    text: str, place: str, epochs: float
) -> None:
    assert OwnFile.parse(text) == OwnFile(place, epochs)
