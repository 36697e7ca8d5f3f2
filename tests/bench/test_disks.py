"""Speeds of places for files, measured on real ones, which are left as they were."""

import errno
import os
import time
from pathlib import Path
from uuid import uuid4

import pytest

from nanochat_core.artifacts.location import open_files
from nanochat_core.bench.disks import measure_files, within

BRIEF = 0.02


def test_a_folder_that_was_not_there_is_gone_afterwards(tmp_path: Path) -> None:
    speed = measure_files(open_files(str(tmp_path / "store")), seconds=BRIEF)
    assert speed.keeps_first
    assert min(speed.write_bytes_per_second, speed.read_bytes_per_second) > 1e4
    assert speed.files_per_second > 0
    assert list(tmp_path.iterdir()) == []


def test_what_was_in_a_store_stays(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "stamps").write_text("mine")
    measure_files(open_files(str(tmp_path)), seconds=BRIEF)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["stamps"]


def test_a_store_in_memory_can_be_measured_too() -> None:
    assert measure_files(open_files(f"memory://{uuid4().hex}"), seconds=BRIEF).keeps_first


def test_a_place_that_cannot_be_a_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=os.strerror(errno.ENOTDIR)):
        measure_files(open_files(str(tmp_path / "file" / "store")), seconds=BRIEF)


def test_who_takes_too_long_is_not_waited_for() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        within(0.05, lambda: time.sleep(10))
    assert time.monotonic() - started < 8
    assert within(5, lambda: 6 * 7) == 42
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
