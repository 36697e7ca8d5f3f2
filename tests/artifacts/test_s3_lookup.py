"""What a host believes of a store elsewhere without reading it, and how it finds out."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server
from s3_tools import FLIP_ANSWER, FORWARD, Proxy, once, other_host, place_on, proxy_to
from store_tools import attempt_path, fill, flip_byte, make_request, open_store, publish

from nanochat_core.artifacts import verifying
from nanochat_core.artifacts.copies import KEEP_SECONDS, LocalCopies
from nanochat_core.artifacts.stamps import Stamps
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import DamagedFileError, StoreUnavailableError

SIZE = 5000
LARGE = "large.bin"


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Sees what is asked of the store. A large file is one of more than 1,000 bytes here."""
    monkeypatch.setattr(verifying, "HASHED_AT_LOOKUP_BYTES", 1000)
    with proxy_to(s3_server.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


@pytest.fixture
def place(proxy: Proxy, s3_server: S3Server) -> str:
    """A store URL behind the proxy, where nothing is yet."""
    return place_on(s3_server)


def publish_large(store: ArtifactStore, folder: Path, text: bytes = b"x") -> ArtifactRef:
    """An artifact of a large and 20 small files."""
    folder.mkdir(exist_ok=True)
    (folder / LARGE).write_bytes(text * SIZE)
    for i in range(20):
        (folder / f"small-{i}").write_bytes(b"%d" % i)
    names = sorted(path.name for path in folder.iterdir())
    return store.publish(make_request(), folder, StageOutput(files=dict.fromkeys(names, "result")))


def asked(proxy: Proxy) -> list[str]:
    """What was asked since the last time, and forgotten now: method and last part of the path."""
    found = [f"{method} {path.split('?')[0].split('/')[-1]}" for method, path, _ in proxy.seen]
    proxy.seen.clear()
    return found


@pytest.mark.s3
def test_what_this_host_published_or_read_is_not_read_again(
    proxy: Proxy, place: str, tmp_path: Path
) -> None:
    store, other = other_host(place, tmp_path), other_host(place, tmp_path)
    ref = publish_large(store, tmp_path / "work")
    manifest = "GET manifest-000001.json"
    asked(proxy)
    assert store.lookup(make_request()) == ref
    assert len(seen := asked(proxy)) == 3
    assert manifest in seen
    assert other.lookup(make_request()) == ref
    assert sorted(name for name in asked(proxy) if "small" in name) == sorted(
        f"GET small-{i}" for i in range(20)
    )
    assert other.lookup(make_request()) == ref
    assert len(asked(proxy)) == 3
    assert (other.materialize(ref) / LARGE).read_bytes() == b"x" * SIZE
    assert f"GET {LARGE}" in asked(proxy)
    assert (other.materialize(ref) / LARGE).exists()
    assert not any("small" in name or LARGE in name for name in asked(proxy))
    assert other.verify(ref) == []
    assert sum("small" in name or LARGE in name for name in asked(proxy)) == 21


@pytest.mark.s3
@pytest.mark.parametrize("name", [LARGE, "small-3"])
def test_a_file_replaced_by_another_of_its_size_is_a_miss(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    store, other = other_host(place, tmp_path), other_host(place, tmp_path)
    ref = publish_large(store, tmp_path / "work")
    assert store.lookup(make_request()) == other.lookup(make_request()) == ref
    flip_byte(store, path := f"{attempt_path(store, ref)}/{name}", 0)
    for host in (store, other):
        with pytest.raises(DamagedFileError, match="Run again"):
            host.materialize(ref)
        assert host.lookup(make_request()) is None
        assert f"{path} does not match the sha256" in caplog.text
    assert [damage.path for damage in store.verify(ref)] == [path]
    again = publish_large(store, tmp_path / "work")
    assert (again.manifest, again.digest) == (2, ref.digest)
    for host in (store, other, other_host(place, tmp_path)):
        assert host.lookup(make_request()) == again
        assert (host.materialize(again) / LARGE).read_bytes() == b"x" * SIZE


@pytest.mark.s3
def test_other_bytes_under_the_same_version_are_a_miss_once_they_were_fetched(
    proxy: Proxy, place: str, tmp_path: Path
) -> None:
    ref = publish_large(other_host(place, tmp_path), tmp_path / "work")
    host = other_host(place, tmp_path)
    # As a store whose disk has changed a bit: the listing says what it always said.
    proxy.rule = lambda method, path: (
        FLIP_ANSWER if method == "GET" and path.endswith(LARGE) else FORWARD
    )
    assert host.lookup(make_request()) == ref, "so large a file is not read to look"
    with pytest.raises(DamagedFileError, match="Run again"):
        host.materialize(ref)
    assert host.lookup(make_request()) is None
    assert not list(tmp_path.rglob(f"copies/**/{LARGE}")), "damaged bytes were kept"
    proxy.rule = lambda method, path: FORWARD
    assert host.lookup(make_request()) is None
    assert host.verify(ref) == [], "verify reads, whatever was found before"
    assert host.lookup(make_request()) == ref


@pytest.mark.s3
def test_a_byte_changed_on_the_way_costs_one_more_reading(
    proxy: Proxy, place: str, tmp_path: Path
) -> None:
    ref = publish_large(other_host(place, tmp_path), tmp_path / "work")
    host = other_host(place, tmp_path)
    proxy.rule = once(FLIP_ANSWER, "GET", LARGE)
    assert (host.materialize(ref) / LARGE).read_bytes() == b"x" * SIZE
    assert host.lookup(make_request()) == ref


@pytest.mark.s3
def test_a_missing_or_cut_file_elsewhere_is_a_miss(place: str, tmp_path: Path) -> None:
    store = other_host(place, tmp_path)
    ref = publish_large(store, tmp_path / "work")
    path = f"{attempt_path(store, ref)}/{LARGE}"
    store.files.write(path, b"x" * (SIZE - 1))
    assert store.lookup(make_request()) is None
    with pytest.raises(DamagedFileError, match=r"4,999 bytes, its manifest says 5,000"):
        store.materialize(ref)
    store.files.remove(path)
    assert store.lookup(make_request()) is None
    with pytest.raises(DamagedFileError, match="is not there"):
        store.materialize(ref)


@pytest.mark.parametrize("kind", [StoreUnavailableError, ConnectionError, KeyboardInterrupt])
def test_a_fetch_that_was_cut_off_says_nothing_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """An outage or Ctrl-C must not cost a day of training."""
    store = open_store("memory", tmp_path)
    ref = publish(store, make_request())

    def cut_off(*_arguments: object) -> str:
        raise kind("in the middle of it")

    with monkeypatch.context() as patch:
        patch.setattr(store.files, "fetch", cut_off)
        with pytest.raises((StoreUnavailableError, KeyboardInterrupt)):
            store.materialize(ref)
    assert store.lookup(make_request()) == ref
    assert (store.materialize(ref) / "parts/a.txt").read_text() == "hello"


def test_what_a_killed_process_left_half_fetched_is_swept(tmp_path: Path) -> None:
    store = open_store("memory", tmp_path)
    ref = publish(store, make_request())
    copy = store.materialize(ref)
    copies = copy.parents[2]
    for name, age in (("old", KEEP_SECONDS + 60), ("young", 0)):
        (copies / ".incoming" / name).write_bytes(b"half")
        os.utime(copies / ".incoming" / name, (time.time() - age,) * 2)
    store.materialize(publish(store, make_request(depth=3)))
    assert [path.name for path in (copies / ".incoming").iterdir()] == ["young"]


def test_the_copies_longest_unused_go_when_space_runs_short(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    copies = LocalCopies(tmp_path / "copies", Stamps(tmp_path / "stamps"), limit_bytes=250)
    manifests = [store.manifest(publish(store, make_request(depth=d))) for d in range(4)]
    folders = [copies.fetch(store.files, manifest) for manifest in manifests[:3]]
    assert all(folder.exists() for folder in folders), "used within a day, so they stay"
    for age, folder in zip((2, 4, 3), folders, strict=True):
        long_ago = time.time() - age * KEEP_SECONDS
        os.utime(folder, (long_ago, long_ago))
    last = copies.fetch(store.files, manifests[3])
    assert [folder.exists() for folder in [*folders, last]] == [True, False, False, True]
    assert not (tmp_path / "copies" / ".outgoing").exists()


@pytest.mark.e2e
def test_processes_that_share_a_cache_take_nothing_from_each_other(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    for depth in range(6):
        store.publish(
            make_request(depth=depth),
            fill(tmp_path / f"work-{depth}", f"{depth}" * 99),
            StageOutput(files={"model.bin": "result", "parts/a.txt": "result"}),
        )
    root, here = Path(__file__).parents[2], Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "cache_users.py"), store.url, str(tmp_path / "copies")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(here)])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 5, "the cache was never too full, so nothing was tried"
