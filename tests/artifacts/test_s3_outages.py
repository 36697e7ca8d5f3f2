"""A store that is killed under way, at any moment, and comes back: patience, and nothing half."""

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3_server import S3Server
from s3_tools import LOSE_ANSWER, REFUSE, other_host, place_on, proxy_to
from store_tools import OUTPUT, fill, make_request, publish

from nanochat_core.artifacts import outages, verifying
from nanochat_core.artifacts.threads import in_threads, without_patience
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import DamagedFileError, StoreUnavailableError

FEW_BYTES = 20_000_000
"""Three parts, so that a kill finds an upload in each of its stages."""


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server of our own to kill."""
    server = S3Server(tmp_path_factory.mktemp("mortal"))
    server.start()
    yield server
    server.remove()


@pytest.fixture
def url(mortal: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store URL on the server to kill."""
    for name, value in mortal.environment.items():
        monkeypatch.setenv(name, value)
    return place_on(mortal)


def work_in(folder: Path, seed: int) -> StageOutput:
    """A large file and some small ones."""
    folder.mkdir()
    (folder / "large").write_bytes(random.Random(seed).randbytes(FEW_BYTES))
    for i in range(10):
        (folder / f"small-{i}").write_bytes(b"%d" % (i + seed))
    names = sorted(path.name for path in folder.iterdir())
    return StageOutput(files=dict.fromkeys(names, "result"))


def same_files(first: Path, second: Path) -> bool:
    names = {path.name for path in first.iterdir()}
    return names == {path.name for path in second.iterdir()} and all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in names
    )


def publish_through_kills(server: S3Server, url: str, folder: Path, num_kills: int) -> None:
    """Each round, a publication during which the server is killed at a random moment."""
    moments, publisher = random.Random(7), other_host(url, folder)
    seconds = 1.5
    for step in range(num_kills):
        request, work = make_request(kill=step), folder / f"work-{step}"
        output = work_in(work, step)
        with ThreadPoolExecutor(1) as pool:
            started = time.monotonic()
            publishing = pool.submit(publisher.publish, request, work, output)
            time.sleep(moments.uniform(0, seconds))
            server.kill()
            server.start()
            watcher = other_host(url, folder)
            assert watcher.verify() == [], "something visible was not whole"
            hit = watcher.lookup(request)
            ref = publishing.result(timeout=200)
            seconds = min(3.0, max(0.5, time.monotonic() - started - 5))
        assert hit in (None, ref)
        assert watcher.lookup(request) == ref
        assert same_files(watcher.materialize(ref), work)
    assert len(publisher.list()) == num_kills


@pytest.mark.s3
def test_a_store_killed_while_files_are_sent_shows_nothing_half_and_gets_them_all(
    mortal: S3Server, url: str, tmp_path: Path
) -> None:
    publish_through_kills(mortal, url, tmp_path, num_kills=1)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.s3
def test_a_store_killed_during_twenty_publications(
    mortal: S3Server, url: str, tmp_path: Path
) -> None:
    publish_through_kills(mortal, url, tmp_path, num_kills=20)


def give_up_through_kills(
    server: S3Server, url: str, folder: Path, num_kills: int
) -> list[ArtifactRef | None]:
    """As above with a publisher that does not wait; what was visible after each kill."""
    moments, publisher, found = random.Random(3), other_host(url, folder), []
    for step in range(num_kills):
        request, work = make_request(given_up=step), folder / f"given-up-{step}"
        output = work_in(work, step)
        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(publisher.publish, request, work, output)
            time.sleep(moments.uniform(0, 1.5))
            server.kill()
            error = publishing.exception(timeout=60)
            assert error is None or isinstance(error, StoreUnavailableError)
        server.start()
        watcher = other_host(url, folder)
        assert watcher.verify() == []
        found.append(watcher.lookup(request))
        ref = publisher.publish(request, work, output)
        assert found[-1] in (None, ref)
        assert watcher.lookup(request) == ref
        assert same_files(watcher.materialize(ref), work)
    return found


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.s3
def test_a_publisher_that_gave_up_finishes_when_it_is_run_again(
    mortal: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "OUTAGE_SECONDS", 0.5)
    assert None in give_up_through_kills(mortal, url, tmp_path, num_kills=8)


@pytest.mark.s3
def test_an_outage_of_seconds_is_ridden_out_by_all_who_are_at_work(
    mortal: S3Server, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = other_host(url, tmp_path)
    old = publish(store, make_request())
    stop, done = threading.Event(), dict.fromkeys(("publish", "lookup", "materialize"), 0)

    def again_and_again(name: str) -> None:
        while not stop.is_set():
            if name == "publish":
                publish(store, make_request(step=done[name]))
            elif name == "lookup":
                assert other_host(url, tmp_path).lookup(make_request()) == old
            else:
                copy = other_host(url, tmp_path).materialize(old)
                assert (copy / "parts" / "a.txt").read_text(encoding="utf-8") == "hello"
            done[name] += 1

    with ThreadPoolExecutor(3) as pool:
        working = [pool.submit(again_and_again, name) for name in done]
        wait_for(lambda: min(done.values()) > 0)
        mortal.kill()
        down, before = time.monotonic(), dict(done)
        mortal.start()
        assert time.monotonic() - down > 2, "that was no outage"
        wait_for(lambda: all(done[name] > before[name] + 1 for name in done))
        stop.set()
        for work in working:
            work.result()
    assert len(store.list()) == done["publish"] + 1
    assert store.verify() == []
    said = [r.getMessage() for r in caplog.records if r.name == outages.log.name]
    assert any("does not answer" in line for line in said)
    assert any("answers again after" in line for line in said)


def wait_for(condition) -> None:  # noqa: ANN001  any function without arguments
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, "it does not go on"
        time.sleep(0.05)


@pytest.mark.s3
def test_an_outage_is_told_once_at_its_start_and_once_at_its_end(
    mortal: S3Server,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with proxy_to(mortal.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        files = other_host(url, tmp_path).files
        files.write("a", b"x")
        back_at = time.monotonic() + 1.0
        proxy.rule = lambda method, path: REFUSE if time.monotonic() < back_at else "forward"
        assert in_threads(files.read, ["a"] * 8, 8) == [b"x"] * 8
    start, end = [r.getMessage() for r in caplog.records if r.name == outages.log.name]
    assert f"the store {url} does not answer (" in start
    assert "answers again after" in end


@pytest.mark.s3
def test_a_store_that_stays_away_is_an_error_that_says_what_to_do(
    mortal: S3Server, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(outages, "OUTAGE_SECONDS", 0.6)
    with proxy_to(mortal.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store, work = other_host(url, tmp_path), fill(tmp_path / "work")
        proxy.rule = lambda method, path: REFUSE
        for action in (
            lambda: store.lookup(make_request()),
            lambda: store.publish(make_request(), work, OUTPUT),
            store.check_writable,
            store.list,
        ):
            started = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="does not answer") as raised:
                action()
            assert "Check that it is running and reachable" in str(raised.value)
            assert 0.5 < time.monotonic() - started < 10, "tidying up must not wait again"


@pytest.mark.s3
def test_a_manifest_whose_answer_was_lost_is_not_taken_for_anothers(
    mortal: S3Server, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with proxy_to(mortal.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = other_host(url, tmp_path)
        left = [LOSE_ANSWER]
        proxy.rule = lambda method, path: (
            left.pop() if left and method == "PUT" and "manifest-" in path else "forward"
        )
        ref = publish(store, make_request())
        assert not left
        assert ref.manifest == 1
        assert store.verify() == []
        assert (store.materialize(ref) / "model.bin").read_bytes() == b"hello" * 20


def flip_on_disk(server: S3Server, data: bytes) -> None:
    """Change a bit of what the server has stored, behind its back."""
    for path in (server.folder / "data").rglob("*.dat"):
        if (at := path.read_bytes().find(data)) >= 0:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([data[0] ^ 1]))
            return
    raise AssertionError("the bytes are not there as they were sent")


@pytest.mark.long
@pytest.mark.s3
def test_a_file_that_the_server_cannot_read_any_more_is_a_miss_once_that_is_known(
    mortal: S3Server, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verifying, "HASHED_AT_LOOKUP_BYTES", 1_000_000)
    store, work = other_host(url, tmp_path), tmp_path / "work"
    # Content of its own: a copy that another test has sent must not be the one that is flipped.
    output = work_in(work, 1_000)
    ref = store.publish(make_request(), work, output)
    mortal.kill()
    flip_on_disk(mortal, (work / "large").read_bytes()[13_000_000:13_000_100])
    mortal.start()
    assert store.lookup(make_request()) == ref, "nobody has read it yet"
    monkeypatch.setattr(outages, "OUTAGE_SECONDS", 1.0)
    with pytest.raises(DamagedFileError, match="lists it but does not send it"):
        store.materialize(ref)
    assert store.lookup(make_request()) is None
    again = store.publish(make_request(), work, output)
    assert (again.manifest, again.digest) == (2, ref.digest)
    assert store.lookup(make_request()) == again
    assert same_files(store.materialize(again), work)


def test_when_one_of_several_fails_the_others_stop_waiting() -> None:
    riding = outages.Outages("s3://nowhere", lambda error: isinstance(error, ConnectionError))

    def work(index: int) -> None:
        def answer() -> None:
            raise ConnectionError if index else PermissionError

        time.sleep(0.0 if index else 0.1)
        riding.ride(answer)

    started = time.monotonic()
    with pytest.raises(PermissionError):
        in_threads(work, range(4), 4)
    assert time.monotonic() - started < 5


def test_when_one_of_several_fails_the_others_do_no_more_of_their_parts() -> None:
    """A stop during the upload of a large file does not wait for its end."""
    done: list[int] = []

    def part(number: int) -> None:
        time.sleep(0.02)
        done.append(number)

    def work(index: int) -> None:
        if index:
            time.sleep(0.05)
            raise PermissionError
        for _ in range(100):
            in_threads(part, range(2), 2)

    with without_patience(), pytest.raises(PermissionError):
        in_threads(work, range(2), 2)
    assert 0 < len(done) < 50


def test_importing_the_store_imports_no_client_of_s3() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from nanochat_core.artifacts.store import ArtifactStore;"
        "ArtifactStore('x'); ArtifactStore('s3://bucket/x');"
        "assert not {'s3fs', 'botocore', 'aiohttp'} & set(sys.modules)"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
