"""One maker among all hosts of a store elsewhere; a host here is a cache folder of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from s3_server import S3Server, with_s3
from store_tools import OUTPUT, fill, make_request

from nanochat_core.artifacts.filesystems import MemoryFiles
from nanochat_core.artifacts.leases import PATIENCE_TTLS, LeaseFile, leased
from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import LeaseLostError, StationBusyError

FINGERPRINT = "ab" * 32
PATH = f"locks/sft-{FINGERPRINT}.json"
TTL = 0.3


@pytest.fixture
def memory_url() -> str:
    return f"memory://{uuid4().hex}"


def host(url: str, folder: Path, name: str, ttl: float = TTL) -> ArtifactStore:
    """The store as one host sees it."""
    return ArtifactStore(url, cache_folder=folder / name, lease_seconds=ttl)


def body(store: ArtifactStore, path: str = PATH) -> dict[str, Any]:
    """What the lease says."""
    return unseal(store.files.read(path), path)


def taken_by_another(store: ArtifactStore) -> None:
    """As a host would do it that has seen the lease unchanged for its time to live."""
    mine = body(store)
    other = {**mine, "host": "elsewhere", "token": "other", "place": "there"}
    store.files.write(PATH, seal({**other, "epoch": mine["epoch"] + 1}))


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_another_host_learns_who_makes_the_artifact(memory_url: str, tmp_path: Path) -> None:
    first, second = host(memory_url, tmp_path, "a"), host(memory_url, tmp_path, "b")
    with (
        first.lock("sft", FINGERPRINT) as lease,
        pytest.raises(StationBusyError, match=f"process {os.getpid()} on .* since 20"),
        second.lock("sft", FINGERPRINT),
    ):
        pass
    with pytest.raises(LeaseLostError, match="was released"):
        lease.check()


def test_another_host_takes_a_lease_at_once_when_it_is_released(
    memory_url: str, tmp_path: Path
) -> None:
    first, second = host(memory_url, tmp_path, "a", 30.0), host(memory_url, tmp_path, "b", 30.0)
    with first.lock("sft", FINGERPRINT) as lease:
        lease.confirm()
        epoch = body(first)["epoch"]
    with second.lock("sft", FINGERPRINT) as lease:
        lease.confirm()
        assert body(second)["epoch"] == epoch + 1


def test_a_waiting_host_gets_its_turn(memory_url: str, tmp_path: Path) -> None:
    first, second = host(memory_url, tmp_path, "a"), host(memory_url, tmp_path, "b")
    done = threading.Event()

    def wait_for_it() -> None:
        with second.lock("sft", FINGERPRINT, wait=True):
            done.set()

    thread = threading.Thread(target=wait_for_it)
    with first.lock("sft", FINGERPRINT):
        thread.start()
        assert not done.wait(2 * TTL), "taken from a holder that renews it"
    assert done.wait(5)
    thread.join()


def test_the_host_of_a_dead_holder_need_not_wait(memory_url: str, tmp_path: Path) -> None:
    """Its OS lock says that the holder is gone."""
    store = host(memory_url, tmp_path, "a", ttl=60.0)
    with store.lock("sft", FINGERPRINT):
        held = store.files.read(PATH)
    store.files.write(PATH, held)
    start = time.monotonic()
    with store.lock("sft", FINGERPRINT):
        assert time.monotonic() - start < 1.0
        assert body(store)["epoch"] == 2


@pytest.mark.parametrize("left", ["whole", "damaged"])
def test_a_lease_that_nobody_renews_runs_out(memory_url: str, tmp_path: Path, left: str) -> None:
    first, second = host(memory_url, tmp_path, "a", 0.3), host(memory_url, tmp_path, "b", 0.3)
    with first.lock("sft", FINGERPRINT):
        held = first.files.read(PATH)
    first.files.write(PATH, held if left == "whole" else held[:-9])
    start = time.monotonic()
    with second.lock("sft", FINGERPRINT):
        assert 0.3 <= time.monotonic() - start < 3.0


def test_a_lease_of_another_is_noticed_by_its_holder(memory_url: str, tmp_path: Path) -> None:
    store = host(memory_url, tmp_path, "a", ttl=0.3)
    with store.lock("sft", FINGERPRINT) as lease:
        lease.check()
        taken_by_another(store)
        with pytest.raises(LeaseLostError, match=r"taken over by process .* on elsewhere"):
            lease.confirm()
        with pytest.raises(LeaseLostError, match="Run again"):
            lease.check()
        taken = store.files.read(PATH)
    assert store.files.read(PATH) == taken, "the end of the loser touched the winner's lease"


def test_the_renewing_thread_notices_a_loss_by_itself(memory_url: str, tmp_path: Path) -> None:
    store = host(memory_url, tmp_path, "a", ttl=0.3)
    with store.lock("sft", FINGERPRINT) as lease:
        taken_by_another(store)

        def is_lost() -> bool:
            try:
                lease.check()
            except LeaseLostError:
                return True
            return False

        wait_until(is_lost, 3.0)


def test_a_lease_that_was_removed_by_hand_is_written_again(memory_url: str, tmp_path: Path) -> None:
    store = host(memory_url, tmp_path, "a")
    with store.lock("sft", FINGERPRINT) as lease:
        store.files.remove(PATH)
        lease.confirm()
        assert body(store)["released"] is False


class Forgetful(MemoryFiles):
    """A store elsewhere whose answers are lost on the way; what was asked is done."""

    def create(self, path: str, data: bytes) -> bool:
        super().create(path, data)
        return False

    def replace_if(self, path: str, data: bytes, version: str) -> str | None:
        super().replace_if(path, data, version)
        return None


def test_a_lost_answer_is_no_lost_lease(memory_url: str) -> None:
    file = LeaseFile(Forgetful(memory_url), PATH)
    options = {"wait": False, "watch": True, "ttl_seconds": 30.0}
    with leased(file, "sft", place="a", **options) as lease:
        lease.confirm()
        lease.confirm()
    with leased(file, "sft", place="b", **options) as lease:
        lease.confirm()


class Away(MemoryFiles):
    """A store elsewhere that can be away."""

    is_away = False

    def info(self, path: str) -> Any:
        if self.is_away:
            raise ConnectionError("nobody there")
        return super().info(path)


def test_a_holder_without_its_store_works_on_until_patience_ends(memory_url: str) -> None:
    files, ttl = Away(memory_url), 0.05
    file = LeaseFile(files, PATH)
    with leased(file, "sft", place="a", wait=False, watch=True, ttl_seconds=ttl) as lease:
        files.is_away = True
        time.sleep(3 * ttl)
        lease.check()
        files.is_away = False
        before = unseal(files.read(PATH), PATH)["renewals"]
        wait_until(lambda: unseal(files.read(PATH), PATH)["renewals"] > before)
        files.is_away = True
        time.sleep((PATIENCE_TTLS + 1) * ttl)
        with pytest.raises(LeaseLostError, match="could not be renewed for"):
            lease.check()


def test_a_local_folder_needs_no_lease(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    with store.lock("sft", FINGERPRINT) as lease:
        lease.check()
        lease.confirm()
    assert [path.name for path in (tmp_path / "store" / "locks").iterdir()] == [
        f"sft-{FINGERPRINT}.lock"
    ]


class Careless(MemoryFiles):
    """A store elsewhere that ignores conditions, as some S3 servers do."""

    def create(self, path: str, data: bytes) -> bool:
        self.write(path, data)
        return True


def test_without_conditional_writes_the_lock_of_this_host_is_all_and_that_is_said(
    memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = host(memory_url, tmp_path, "a")
    store.files = Careless(memory_url)
    assert not store.capabilities().conditional_create
    with (
        store.lock("sft", FINGERPRINT),
        pytest.raises(StationBusyError, match=f"process {os.getpid()}"),
        store.lock("sft", FINGERPRINT),
    ):
        pass
    assert "only processes of this host are kept from" in caplog.text
    assert store.files.names("locks") == ()


class Holder:
    """Another host: `lease_holder.py` as a process."""

    def __init__(self, server: S3Server, url: str, cache: Path, ttl: float, work: str = "") -> None:
        script = Path(__file__).with_name("lease_holder.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), url, str(cache), str(ttl), *([work] if work else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=with_s3(os.environ, server),
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self) -> str:
        """Let it confirm its lease; what it says."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


@pytest.mark.s3
def test_a_killed_holder_on_another_host_is_replaced_within_the_time_to_live(
    s3_server: S3Server, s3_url: str, tmp_path: Path
) -> None:
    ttl, request = 4.0, make_request()
    holder = Holder(s3_server, s3_url, tmp_path / "a", ttl)
    try:
        assert holder.line() == "held"
        store = host(s3_url, tmp_path, "b", ttl)
        store.check_writable()  # connects, which is not what is measured
        start = time.monotonic()
        with (
            pytest.raises(StationBusyError, match=f"process {holder.process.pid} on"),
            store.lock(request.station, request.fingerprint),
        ):
            pass
        assert time.monotonic() - start < ttl, "a living holder renews sooner than that"
        holder.process.kill()
        holder.process.wait()
        start = time.monotonic()
        with store.lock(request.station, request.fingerprint) as lease:
            seconds = time.monotonic() - start
            lease.confirm()
        assert seconds < ttl + 2.0
    finally:
        holder.end()


@pytest.mark.s3
def test_a_holder_that_was_frozen_has_lost_and_adopts_what_the_next_one_made(
    s3_server: S3Server, s3_url: str, tmp_path: Path
) -> None:
    ttl, request = 1.5, make_request()
    fill(tmp_path / "old", "old")
    holder = Holder(s3_server, s3_url, tmp_path / "a", ttl, str(tmp_path / "old"))
    try:
        assert holder.line() == "held"
        holder.process.send_signal(signal.SIGSTOP)
        store = host(s3_url, tmp_path, "b", ttl)
        with store.lock(request.station, request.fingerprint) as lease:
            holder.process.send_signal(signal.SIGCONT)
            assert holder.ask().startswith("lost: The lease locks/pretrain-")
            lease.confirm()
            ref = store.publish(request, fill(tmp_path / "new", "new"), OUTPUT)
        assert holder.ask() == str(ref.manifest) == "1"
        assert store.lookup(request) == ref
        assert store.materialize(ref).joinpath("parts/a.txt").read_text() == "new"
    finally:
        holder.end()


@pytest.mark.s3
def test_outages_shorter_and_longer_than_the_time_to_live_lose_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = S3Server(tmp_path / "server")
    server.start()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = server.new_bucket()
        stores = {ttl: host(url, tmp_path, "a", ttl) for ttl in (3.0, 30.0)}
        with stores[3.0].lock("sft", "1" * 64) as short, stores[30.0].lock("sft", "2" * 64) as long:
            server.kill()
            time.sleep(3.5)
            short.check()
            long.check()
            server.start()
            short.confirm()
            long.confirm()
            for number, store in zip("12", stores.values(), strict=True):
                assert body(store, f"locks/sft-{number * 64}.json")["epoch"] == 1
    finally:
        server.remove()
