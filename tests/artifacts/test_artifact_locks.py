"""One maker at a time, in-progress folders, and local copies of a store elsewhere."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from store_tools import OUTPUT, attempt_path, fill, flip_byte, make_request, open_store, publish

from nanochat_core.artifacts.copies import KEEP_SECONDS
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import DamagedFileError, StationBusyError, StoreUnavailableError

FINGERPRINT = "ab" * 32
HOLDER = """
import os, sys, time
from pathlib import Path
from nanochat_core.artifacts.store import ArtifactStore
with ArtifactStore(sys.argv[1], cache_folder=Path(sys.argv[2])).lock("sft", "ab" * 32):
    orphan = 0
    if sys.argv[3] == "fork":
        runs, tells = os.pipe()
        orphan = os.fork()
        if not orphan:
            os.write(tells, b".")  # it has left the lock behind by now
            time.sleep(60)
            os._exit(0)
        os.read(runs, 1)
    print(orphan, flush=True)
    time.sleep(60)
"""


def hold_lock(store: ArtifactStore, folder: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    """A process that holds the lock of an artifact, and the child it forked, if any."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.url, str(folder / "cache"), how],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_the_second_maker_learns_who_the_first_is(store: ArtifactStore) -> None:
    with store.lock("sft", FINGERPRINT):
        with (
            pytest.raises(StationBusyError, match=f"process {os.getpid()} on .* since 20"),
            store.lock("sft", FINGERPRINT),
        ):
            pass
        with store.lock("sft", "cd" * 32), store.lock("pretrain", FINGERPRINT):
            pass
    with store.lock("sft", FINGERPRINT):
        pass


def test_waiting_takes_the_lock_when_it_is_free(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()

    def wait_for_it() -> None:
        with store.lock("sft", FINGERPRINT, wait=True):
            done.set()

    with caplog.at_level(logging.INFO):
        with store.lock("sft", FINGERPRINT):
            thread = threading.Thread(target=wait_for_it)
            thread.start()
            assert not done.wait(0.1)
        assert done.wait(5)
    thread.join()
    assert f"waiting for sft/abababab, which is being made by process {os.getpid()}" in caplog.text


@pytest.mark.parametrize("how", ["alone", "fork"])
@pytest.mark.skipif(os.name == "nt", reason="signals and fork")
def test_a_killed_holder_frees_the_lock_even_if_it_leaves_a_forked_child(
    tmp_path: Path, how: str
) -> None:
    store = open_store("local", tmp_path)
    holder, orphan = hold_lock(store, tmp_path, how)
    try:
        with (
            pytest.raises(StationBusyError, match=f"process {holder.pid} on"),
            store.lock("sft", FINGERPRINT),
        ):
            pass
        holder.kill()
        holder.wait()
        with store.lock("sft", FINGERPRINT):
            pass
    finally:
        holder.kill()
        if orphan:
            os.kill(orphan, signal.SIGKILL)
        holder.communicate()


def test_an_unreadable_owner_is_still_busy(local_store: ArtifactStore) -> None:
    with local_store.lock("sft", FINGERPRINT):
        lock_file = Path(local_store.url) / "locks" / f"sft-{FINGERPRINT}.lock"
        lock_file.write_bytes(b"\xff half")
        with (
            pytest.raises(StationBusyError, match="another process"),
            local_store.lock("sft", FINGERPRINT),
        ):
            pass


def test_a_lock_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    store = open_store("local", tmp_path)
    with (
        pytest.raises(StoreUnavailableError, match="Could not write the lock"),
        store.lock("sft", FINGERPRINT),
    ):
        pass
    with pytest.raises(StoreUnavailableError, match="is a file"):
        store.generation(make_request())
    (tmp_path / "store").unlink()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "inprogress").touch()
    with pytest.raises(StoreUnavailableError, match="in-progress folder"):
        store.generation(make_request())


def test_a_generation_is_found_again_until_it_is_discarded(store: ArtifactStore) -> None:
    folder = store.generation(make_request())
    (folder / "step").write_text("10")
    assert store.generation(make_request()) == folder
    assert store.generation(make_request(depth=3)) != folder
    store.discard_generations(make_request())
    assert not folder.exists()
    assert list(store.generation(make_request()).iterdir()) == []


def test_a_fresh_generation_is_empty_and_becomes_the_newest(store: ArtifactStore) -> None:
    old = store.generation(make_request())
    (old / "step").write_text("10")
    new = store.generation(make_request(), fresh=True)
    assert new != old
    assert list(new.iterdir()) == []
    assert store.generation(make_request()) == new
    assert not old.exists()


def test_what_was_published_is_never_worked_on_again(store: ArtifactStore) -> None:
    """A kill between publishing and discarding, then damage: the repair starts from nothing."""
    folder = store.generation(make_request())
    ref = store.publish(make_request(), fill(folder), OUTPUT)
    flip_byte(store, f"{attempt_path(store, ref)}/model.bin", 0)
    repair = store.generation(make_request())
    assert list(repair.iterdir()) == []
    (repair / "step").write_text("1")
    assert (store.generation(make_request()) / "step").exists()


def test_generations_of_a_local_store_lie_in_it(local_store: ArtifactStore) -> None:
    folder = local_store.generation(make_request())
    below = folder.relative_to(local_store.url).parts
    assert below[:3] == ("inprogress", "pretrain", make_request().fingerprint)


def test_a_copy_is_fetched_once_and_repaired_when_damaged(memory_store: ArtifactStore) -> None:
    ref = publish(memory_store, make_request())
    folder = memory_store.materialize(ref)
    inode = (folder / "model.bin").stat().st_ino
    assert memory_store.materialize(ref) == folder
    assert (folder / "model.bin").stat().st_ino == inode
    (folder / "model.bin").write_bytes(b"J" * 100)
    (folder / "parts" / "a.txt").unlink()
    assert (memory_store.materialize(ref) / "model.bin").read_bytes() == b"hello" * 20
    assert (folder / "parts" / "a.txt").read_text() == "hello"


def test_a_damaged_download_is_refused(memory_store: ArtifactStore, tmp_path: Path) -> None:
    ref = publish(memory_store, make_request())
    flip_byte(memory_store, f"{attempt_path(memory_store, ref)}/model.bin", 7)
    with pytest.raises(DamagedFileError, match=r"model\.bin is damaged"):
        memory_store.materialize(ref)
    assert list(tmp_path.rglob("model.bin")) == []


def test_copies_not_used_for_a_day_go_when_space_runs_short(tmp_path: Path) -> None:
    url = open_store("memory", tmp_path).url
    store = ArtifactStore(url, cache_folder=tmp_path / "cache", cache_limit_bytes=250)
    refs = [publish(store, make_request(depth=depth)) for depth in range(4)]
    folders = [store.materialize(ref) for ref in refs[:3]]
    assert all(folder.exists() for folder in folders)
    for age, folder in zip((3, 2, 0), folders, strict=True):
        used = time.time() - age * KEEP_SECONDS
        os.utime(folder, (used, used))
    last = store.materialize(refs[3])
    assert [folder.exists() for folder in (*folders, last)] == [False, False, True, True]
