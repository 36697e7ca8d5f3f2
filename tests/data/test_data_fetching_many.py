"""Many files at once: all arrive, or one message; what is whole survives failures and kills."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_server import (
    Fault,
    HubServer,
    busy,
    corrupt,
    cut,
    digest_of,
    make_shards,
    missing,
    slow,
    without_ranges,
)

from nanochat_core.data.fetching import FetchPolicy, fetch, fetch_all
from nanochat_core.data.recipes import FileDigest
from nanochat_core.errors import DataError
from nanochat_core.logs import Progress

CHECKOUT = Path(__file__).parents[2]


class Told(Progress):
    """What a command would show."""

    def __init__(self) -> None:
        super().__init__(None, 0, "")
        self.values: list[int] = []
        self.threads: set[int] = set()

    def update(self, done: int, message: str = "") -> None:
        self.values.append(done)
        self.threads.add(threading.get_ident())


def fetch_set(hub: HubServer, folder: Path, files: list[FileDigest], **policy: float) -> Told:
    told, taken = Told(), list[str]()

    def done(path: Path, file: FileDigest) -> None:
        assert path == folder / file.name
        assert threading.get_ident() == threading.main_thread().ident
        taken.append(file.name)

    try:
        fetch_all(
            *(files, lambda file: [hub.url_of(file.name)], folder),
            FetchPolicy(first_wait_seconds=0.01, **policy),  # type: ignore[arg-type]
            done=done,
            progress=told,
        )
    finally:
        there = {path.name for path in folder.glob("*.parquet")}
        assert set(taken) <= there
    assert sorted(taken) == sorted(file.name for file in files)
    return told


def test_many_files_with_all_that_can_go_wrong_for_a_while_arrive_right(tmp_path: Path) -> None:
    shards = make_shards(8)
    with HubServer() as hub:
        files = hub.add(shards)
        names = list(shards)
        hub.fault(names[1], cut(2000, times=2), busy(503, times=2))
        hub.fault(names[2], busy(429, Retry_After="0"), cut(0))
        hub.fault(names[4], corrupt(times=1))
        hub.fault(names[6], cut(100), corrupt(times=1), busy(500))
        hub.fault(names[7], slow(8000, 0.01))
        told = fetch_set(hub, tmp_path / "shards", files)
    for name, data in shards.items():
        assert (tmp_path / "shards" / name).read_bytes() == data
    assert not list((tmp_path / "shards").glob("*.part"))
    assert told.total == told.values[-1] == sum(map(len, shards.values()))
    assert told.threads == {threading.main_thread().ident}


def test_one_file_that_cannot_be_had_ends_all_and_keeps_what_is_whole(tmp_path: Path) -> None:
    shards = make_shards(6)
    names = list(shards)
    with HubServer() as hub:
        files = hub.add(shards)
        hub.fault(names[3], missing())
        with pytest.raises(DataError, match=names[3]):
            fetch_set(hub, tmp_path, files, parallel=1)
        assert sorted(path.name for path in tmp_path.glob("*.parquet")) == names[:3]
        assert not hub.requests(names[5])
        hub.fault(names[3])
        hub.asked.clear()
        fetch_set(hub, tmp_path, files, parallel=1)
        assert {asked.path.rsplit("/", 1)[-1] for asked in hub.asked} == set(names[3:])


def test_a_failure_does_not_wait_for_servers_that_hang(tmp_path: Path) -> None:
    shards = make_shards(3)
    names = list(shards)
    with HubServer() as hub:
        files = hub.add(shards)
        hub.fault(names[0], slow(1000, 3.0))
        hub.fault(names[1], slow(1000, 3.0))
        hub.fault(names[2], cut(2000), missing())
        began = time.monotonic()
        with pytest.raises(DataError, match=names[2]):
            fetch_set(hub, tmp_path, files, parallel=3)
        assert time.monotonic() - began < 2


def drawn_fault(draw: random.Random, size: int) -> Fault:
    return draw.choice(
        [
            cut(draw.randrange(size), times=draw.randint(1, 3)),
            busy(draw.choice([429, 500, 503]), times=draw.randint(1, 3), Retry_After="0"),
            corrupt(times=draw.randint(1, 3)),
            missing(),
            without_ranges(),
            slow(draw.randint(2_000, 9_000), 0.0, times=1),
        ]
    )


@pytest.mark.parametrize("seed", range(8))
def test_whatever_goes_wrong_a_file_is_right_or_absent(tmp_path: Path, seed: int) -> None:
    draw, shards = random.Random(seed), make_shards(3)
    wrong = {name: bytes([data[0] ^ 1]) + data[1:] for name, data in shards.items()}
    with HubServer() as hub:
        places = [hub.put(shards, "first"), hub.put(wrong, "wrong"), hub.put(shards, "second")]
        for name, data in shards.items():
            for folder in ("first", "wrong", "second"):
                hub.fault(f"{folder}/{name}", *(drawn_fault(draw, len(data)) for _ in range(4)))
            if draw.random() < 0.3:
                left = draw.choice([data, wrong[name]])[: draw.randrange(len(data))]
                (tmp_path / f"{name}.part").write_bytes(left)
            urls = [f"{place}/{name}" for place in draw.sample(places, k=draw.randint(1, 3))]
            policy = FetchPolicy(attempts=4, first_wait_seconds=0.001)
            counted: list[int] = []
            message = ""
            try:
                expected = digest_of(name, data)
                fetch(urls, tmp_path / name, expected, policy, on_bytes=counted.append)
            except DataError as error:
                message = str(error)
            if message:
                assert all(part in message for part in (name, *urls))
                assert not (tmp_path / name).exists()
            else:
                assert (tmp_path / name).read_bytes() == data
                assert sum(counted) == len(data)


@pytest.mark.e2e
def test_a_killed_process_loses_at_most_what_was_in_flight(tmp_path: Path) -> None:
    shards = {name: data * 40 for name, data in make_shards(4).items()}
    with HubServer() as hub:
        files = hub.add(shards)
        slow_one = list(shards)[2]
        hub.fault(slow_one, slow(20_000, 0.05))
        script = (
            "import sys; from pathlib import Path; from nanochat_core.logs import Progress\n"
            "from nanochat_core.data.fetching import *\n"
            "from nanochat_core.data.recipes import FileDigest\n"
            "files = [FileDigest.model_validate_json(line) for line in sys.argv[3:]]\n"
            "fetch_all(files, lambda file: [f'{sys.argv[1]}/{file.name}'], Path(sys.argv[2]),\n"
            "    FetchPolicy(parallel=2), done=lambda *_: None, progress=Progress(None, 0, ''))\n"
        )
        place = hub.url_of("x").removesuffix("/x")
        process = subprocess.Popen(
            [sys.executable, "-c", script, place, str(tmp_path)]
            + [file.model_dump_json() for file in files],
            cwd=CHECKOUT,
        )
        try:
            part, others = tmp_path / f"{slow_one}.part", [n for n in shards if n != slow_one]
            deadline = time.monotonic() + 60
            while not (
                part.exists()
                and part.stat().st_size > 50_000
                and all((tmp_path / name).exists() for name in others)
            ):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait(timeout=30)
        assert not (tmp_path / slow_one).exists()
        kept = part.stat().st_size
        hub.fault(slow_one)
        hub.asked.clear()
        fetch_set(hub, tmp_path, files)
        assert [(asked.path.rsplit("/", 1)[-1], asked.range) for asked in hub.asked] == [
            (slow_one, f"bytes={kept}-")
        ]
    for name, data in shards.items():
        assert (tmp_path / name).read_bytes() == data
