"""What stays of damage once it is repaired, and of runs that were killed while publishing."""

from pathlib import Path

import pytest
from store_tools import (
    OUTPUT,
    attempt_path,
    attempts,
    fill,
    flip_byte,
    make_request,
    open_store,
    publish,
    stored_bytes,
)

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import ArtifactNotFoundError, DamagedFileError


def test_a_reference_to_a_damaged_artifact_gets_its_equal_made_since(store: ArtifactStore) -> None:
    old = publish(store, make_request())
    flip_byte(store, f"{attempt_path(store, old)}/model.bin", 3)
    with pytest.raises(DamagedFileError):
        store.materialize(old)
    new = publish(store, make_request())
    assert (new.manifest, new.digest) == (2, old.digest)
    content = (store.materialize(old) / "model.bin").read_bytes()
    assert content == (store.materialize(new) / "model.bin").read_bytes() == b"hello" * 20


def test_a_reference_to_a_damaged_manifest_gets_its_equal_made_since(store: ArtifactStore) -> None:
    old = publish(store, make_request())
    flip_byte(store, f"pretrain/{old.fingerprint}/manifest-000001.json", 30)
    publish(store, make_request())
    assert (store.materialize(old) / "model.bin").exists()


def test_another_content_under_the_same_fingerprint_is_no_equal(store: ArtifactStore) -> None:
    old = publish(store, make_request())
    publish(store, make_request(), "other", replace=True)
    flip_byte(store, f"{attempt_path(store, old)}/model.bin", 3)
    with pytest.raises(DamagedFileError):
        store.materialize(old)
    with pytest.raises(ArtifactNotFoundError):
        store.materialize(old.model_copy(update={"manifest": 9, "digest": "0" * 64}))


def test_damage_that_was_made_good_is_told_apart(store: ArtifactStore) -> None:
    ref = publish(store, make_request())
    flip_byte(store, f"{attempt_path(store, ref)}/model.bin", 3)
    assert [damage.repaired for damage in store.verify()] == [False]
    again = publish(store, make_request())
    assert [damage.repaired for damage in store.verify()] == [True]
    flip_byte(store, f"{attempt_path(store, again)}/model.bin", 3)
    assert [damage.repaired for damage in store.verify()] == [False, False]


def leave_as_killed(store: ArtifactStore, ref_attempt: str) -> str:
    """An attempt that nothing names, and the folder of its maker."""
    data = stored_bytes(store, f"{ref_attempt}/model.bin")
    left = ref_attempt.rsplit("/", 1)[0] + "/20260101T000000-0123456789ab"
    store.files.write(f"{left}/model.bin", data)
    store.files.write(ref_attempt.rsplit("/", 1)[0] + "/.tmp-1", b"half")
    (store.generation(make_request()) / "work").mkdir()
    return left


def test_what_a_killed_run_left_is_cleared_beside_the_artifact(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    ref = publish(store, make_request())
    left = leave_as_killed(store, attempt_path(store, ref))
    with store.lock("pretrain", ref.fingerprint):
        store.clear_leftovers(make_request())
        assert store.files.names(left) == ("model.bin",), "taken from a maker at work"
    store.clear_leftovers(make_request())
    assert store.files.names(f"pretrain/{ref.fingerprint}") == (
        attempt_path(store, ref).rsplit("/", 1)[-1],
        "manifest-000001.json",
    )
    assert list((tmp_path / "store" / "inprogress" / "pretrain").iterdir()) == []
    assert store.lookup(make_request()) == ref
    assert store.verify() == []


def test_while_a_manifest_is_damaged_no_attempt_is_cleared(store: ArtifactStore) -> None:
    ref = publish(store, make_request())
    publish(store, make_request(), "two", replace=True)
    before = attempts(store, make_request())
    flip_byte(store, f"pretrain/{ref.fingerprint}/manifest-000002.json", 30)
    store.clear_leftovers(make_request())
    assert attempts(store, make_request()) == before


def test_clearing_where_there_is_nothing_takes_no_lock(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    store.publish(make_request(), fill(tmp_path / "work"), OUTPUT)
    store.clear_leftovers(make_request())
    assert not (tmp_path / "store" / "locks").exists()
