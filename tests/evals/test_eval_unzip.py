"""Only the pinned archive is unpacked, and only into its folder."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from nanochat_core.errors import DamagedFileError, DataError
from nanochat_core.evals.unzip import unzip_pinned


def make_zip(path: Path, members: list[tuple[str, str]]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members:
            archive.writestr(name, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_pinned_archive_is_unpacked(tmp_path: Path) -> None:
    pin = make_zip(tmp_path / "b.zip", [("b/core.yaml", "x: 1"), ("b/eval_data/a.jsonl", "{}")])
    unzip_pinned(tmp_path / "b.zip", tmp_path / "out", sha256=pin)
    assert (tmp_path / "out/b/core.yaml").read_text() == "x: 1"
    assert (tmp_path / "out/b/eval_data/a.jsonl").read_text() == "{}"


def test_other_bytes_than_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    make_zip(tmp_path / "b.zip", [("a", "1")])
    with pytest.raises(DamagedFileError, match="download it again"):
        unzip_pinned(tmp_path / "b.zip", tmp_path / "out", sha256="0" * 64)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_a_member_outside_the_folder_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    pin = make_zip(tmp_path / "b.zip", [("good", "1"), (name, "2")])
    with pytest.raises(DataError, match="refused the member"):
        unzip_pinned(tmp_path / "b.zip", tmp_path / "out", sha256=pin)
    assert not (tmp_path / "out").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr(info, "/etc")
    pin = hashlib.sha256((tmp_path / "b.zip").read_bytes()).hexdigest()
    with pytest.raises(DataError, match="refused the member 'link'"):
        unzip_pinned(tmp_path / "b.zip", tmp_path / "out", sha256=pin)


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(b"not a zip")
    pin = hashlib.sha256(b"not a zip").hexdigest()
    with pytest.raises(DataError, match="not a readable zip"):
        unzip_pinned(tmp_path / "b.zip", tmp_path / "out", sha256=pin)
