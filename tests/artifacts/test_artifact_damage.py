"""Damage of every kind is noticed at the next use: a miss with a reason, never a wrong hit."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from store_tools import (
    attempt_path,
    flip_byte,
    make_request,
    overwrite,
    publish,
    stored_bytes,
)

from nanochat_core.artifacts.canonical import sha256_hex
from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.artifacts.stamps import RACY_NANOSECONDS, Stamps
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ArtifactNotFoundError, DamagedFileError

FILES = ("model.bin", "parts/a.txt", "metrics.jsonl")


def let_stamps_settle() -> None:
    time.sleep(RACY_NANOSECONDS / 1e9 + 0.02)


def some_positions(store: ArtifactStore, path: str) -> list[int]:
    return random.Random(0).choices(range(len(stored_bytes(store, path))), k=25)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_of_a_file_is_a_miss(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    ref = publish(store, make_request())
    path = f"{attempt_path(store, ref)}/{name}"
    let_stamps_settle()
    for position in some_positions(store, path):
        assert store.lookup(make_request()) == ref
        flip_byte(store, path, position)
        assert store.lookup(make_request()) is None
        assert f"{path} does not match the sha256" in caplog.text
        with pytest.raises(DamagedFileError, match="damaged"):
            store.materialize(ref)
        assert [damage.path for damage in store.verify()] == [path]
        flip_byte(store, path, position)
    assert store.verify(ref) == []


def test_a_flipped_byte_of_a_manifest_is_a_miss(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    ref = publish(store, make_request())
    path = f"pretrain/{ref.fingerprint}/manifest-000001.json"
    for position in some_positions(store, path):
        flip_byte(store, path, position)
        assert store.lookup(make_request()) is None
        assert f"the manifest {path} is damaged" in caplog.text
        with pytest.raises(DamagedFileError):
            store.materialize(ref)
        assert store.list() == []
        assert [damage.path for damage in store.verify()] == [path]
        flip_byte(store, path, position)
    assert store.lookup(make_request()) == ref


@pytest.mark.parametrize("data", [b"", b"{}", b'{"format":1', b"\x00" * 64])
def test_a_cut_or_empty_manifest_is_a_miss_and_can_be_published_over(
    store: ArtifactStore, data: bytes
) -> None:
    ref = publish(store, make_request())
    overwrite(store, f"pretrain/{ref.fingerprint}/manifest-000001.json", data)
    assert store.lookup(make_request()) is None
    again = publish(store, make_request())
    assert (again.manifest, again.digest) == (2, ref.digest)
    assert store.lookup(make_request()) == again


def test_a_sound_manifest_in_the_place_of_another_is_damage(store: ArtifactStore) -> None:
    first, second = publish(store, make_request()), publish(store, make_request(depth=3))
    source = f"pretrain/{first.fingerprint}/manifest-000001.json"
    target = f"pretrain/{second.fingerprint}/manifest-000001.json"
    overwrite(store, target, stored_bytes(store, source))
    assert store.lookup(make_request(depth=3)) is None
    store.files.write(
        f"pretrain/{first.fingerprint}/manifest-000002.json", stored_bytes(store, source)
    )
    assert store.lookup(make_request()) == first


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "0" * 64},
        {"recipe": {"depth": 9}},
        {"format": 2},
        {"attempt": "../elsewhere"},
        {"surprise": 1},
        {"files": [{"path": "../x", "role": "result", "bytes": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "/etc/passwd", "role": "record", "bytes": 1, "sha256": "0" * 64}]},
    ],
)
def test_a_manifest_that_contradicts_itself_is_damage_even_when_sealed(
    store: ArtifactStore, change: dict[str, object]
) -> None:
    ref = publish(store, make_request())
    path = f"pretrain/{ref.fingerprint}/manifest-000001.json"
    body = unseal(stored_bytes(store, path), path)
    overwrite(store, path, seal({**body, **change}))
    assert store.lookup(make_request()) is None
    with pytest.raises(DamagedFileError):
        store.manifest(ref)


def test_the_highest_valid_manifest_counts(store: ArtifactStore) -> None:
    first = publish(store, make_request(), "one")
    publish(store, make_request(), "two", replace=True)
    flip_byte(store, f"pretrain/{first.fingerprint}/manifest-000002.json", 30)
    assert store.lookup(make_request()) == first
    assert publish(store, make_request(), "three", replace=True).manifest == 3


def test_damaged_files_are_made_again_under_the_next_number(store: ArtifactStore) -> None:
    ref = publish(store, make_request())
    flip_byte(store, f"{attempt_path(store, ref)}/model.bin", 3)
    again = publish(store, make_request())
    assert (again.manifest, again.digest) == (2, ref.digest)
    assert store.lookup(make_request()) == again
    assert [damage.path for damage in store.verify()] == [f"{attempt_path(store, ref)}/model.bin"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_a_miss(store: ArtifactStore, name: str) -> None:
    ref = publish(store, make_request())
    path = f"{attempt_path(store, ref)}/{name}"
    overwrite(store, path, stored_bytes(store, path)[:-1])
    assert store.lookup(make_request()) is None
    store.files.remove(path)
    assert store.lookup(make_request()) is None
    with pytest.raises(DamagedFileError):
        store.materialize(ref)


def test_a_flipped_byte_of_an_alias_is_no_alias(store: ArtifactStore) -> None:
    ref = publish(store, make_request())
    store.set_alias("latest", ref)
    for position in some_positions(store, "aliases/latest.json"):
        flip_byte(store, "aliases/latest.json", position)
        assert store.alias("latest") is None
        assert store.aliases() == {}
        with pytest.raises(DamagedFileError, match="Run the line again"):
            store.resolve("latest")
        assert [damage.path for damage in store.verify()] == ["aliases/latest.json"]
        flip_byte(store, "aliases/latest.json", position)
    overwrite(store, "aliases/latest.json", b"")
    assert store.set_alias("latest", ref)
    assert store.resolve("latest") == ref


def test_a_flipped_byte_of_a_run_record_leaves_it_out(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.save_run("run-1", {"stages": {"shards": "made"}})
    store.save_run("run-2", {})
    for position in some_positions(store, "runs/run-1.json"):
        flip_byte(store, "runs/run-1.json", position)
        assert store.runs() == {"run-2": {}}
        assert "runs/run-1.json is damaged" in caplog.text
        assert [damage.path for damage in store.verify()] == ["runs/run-1.json"]
        flip_byte(store, "runs/run-1.json", position)
    assert store.verify() == []


def test_an_alias_under_another_name_is_damage(store: ArtifactStore) -> None:
    store.set_alias("latest", publish(store, make_request()))
    store.files.write("aliases/other.json", stored_bytes(store, "aliases/latest.json"))
    assert store.alias("other") is None


def test_the_files_of_a_manifest_never_leave_its_folder(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactNotFoundError):
        store.resolve("pretrain/../../etc")


def a_stamped_file(folder: Path) -> tuple[Stamps, Path, str]:
    stamps, path = Stamps(folder / "stamps"), folder / "file"
    path.write_bytes(b"content")
    let_stamps_settle()
    sha256 = sha256_hex(b"content")
    assert stamps.confirms(path, sha256)
    assert len(list(stamps.folder.iterdir())) == 1
    return stamps, path, sha256


def test_a_stamp_does_not_outlive_a_change_with_its_time_restored(tmp_path: Path) -> None:
    stamps, path, sha256 = a_stamped_file(tmp_path)
    before = path.stat()
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not stamps.confirms(path, sha256)


def test_a_file_that_was_just_written_gets_no_stamp(tmp_path: Path) -> None:
    stamps, path = Stamps(tmp_path / "stamps"), tmp_path / "file"
    path.write_bytes(b"content")
    assert stamps.confirms(path, sha256_hex(b"content"))
    assert not stamps.folder.exists()


@pytest.mark.parametrize("data", [b"", b"garbage", b"[" * 50_000])
def test_a_damaged_stamp_is_ignored_and_made_anew(tmp_path: Path, data: bytes) -> None:
    stamps, path, sha256 = a_stamped_file(tmp_path)
    stamp = next(stamps.folder.iterdir())
    good = stamp.read_bytes()
    stamp.write_bytes(data)
    assert not stamps.confirms(path, "0" * 64)
    assert stamps.confirms(path, sha256)
    assert stamp.read_bytes() == good


def test_a_flipped_byte_of_a_stamp_changes_no_answer(tmp_path: Path) -> None:
    stamps, path, sha256 = a_stamped_file(tmp_path)
    stamp = next(stamps.folder.iterdir())
    good = stamp.read_bytes()
    for position in range(0, len(good), 7):
        stamp.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert not stamps.confirms(path, "0" * 64)
        assert stamps.confirms(path, sha256)


def test_stamps_that_cannot_be_kept_cost_time_only(tmp_path: Path) -> None:
    (tmp_path / "stamps").write_text("a file in the way")
    stamps, path = Stamps(tmp_path / "stamps"), tmp_path / "file"
    path.write_bytes(b"content")
    let_stamps_settle()
    assert stamps.confirms(path, sha256_hex(b"content"))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts the bytes we read")
def test_looking_again_reads_no_file_whole(local_store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x" * 10_000_000)
    output = StageOutput(files={"weights": "result"})
    ref = local_store.publish(make_request(), tmp_path, output)
    let_stamps_settle()
    assert bytes_read(lambda: local_store.lookup(make_request())) > 10_000_000
    assert bytes_read(lambda: local_store.lookup(make_request())) < 100_000
    assert bytes_read(lambda: local_store.materialize(ref)) < 100_000
    assert bytes_read(lambda: local_store.verify(ref)) > 10_000_000


def bytes_read(action: Callable[[], object]) -> int:
    before = _read_counter()
    action()
    return _read_counter() - before


def _read_counter() -> int:
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])
