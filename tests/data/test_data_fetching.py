"""Files from elsewhere arrive whole and right, or not at all, whatever a server does."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hub_server import (
    ALWAYS,
    TOKEN,
    HubServer,
    busy,
    corrupt,
    cut,
    digest_of,
    make_shard,
    missing,
    slow,
    without_ranges,
)

from nanochat_core.data.fetching import FetchPolicy, fetch
from nanochat_core.data.hub import hub_headers
from nanochat_core.data.remote_bytes import shown_url, wanted_wait
from nanochat_core.errors import DataError, JobStoppedError, StoreUnavailableError

NAME = "shard_00000.parquet"
DATA = make_shard(0)
FILE = digest_of(NAME, DATA)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add({NAME: DATA})
        yield server


@pytest.fixture
def policy(hub: HubServer) -> FetchPolicy:
    return FetchPolicy(
        connect_seconds=2, read_seconds=2, first_wait_seconds=0.01, endpoint=hub.endpoint
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / NAME


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def test_a_file_arrives_whole_under_its_name_and_no_part_is_left(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    fetch([f"hf://datasets/some/climbmix/{NAME}"], target, FILE, policy)
    assert target.read_bytes() == DATA
    assert not part_of(target).exists()
    assert len(hub.asked) == 1


def test_what_a_cut_connection_brought_is_continued(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    hub.fault(NAME, cut(3000, times=3))
    fetch([hub.url_of(NAME)], target, FILE, policy)
    assert target.read_bytes() == DATA
    assert hub.ranges(NAME) == ["", "bytes=3000-", "bytes=6000-", "bytes=9000-"]


def test_tries_that_bring_something_are_not_counted_against_an_address(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    hub.fault(NAME, cut(1 + len(DATA) // 20, times=ALWAYS))
    fetch([hub.url_of(NAME)], target, FILE, policy)
    assert target.read_bytes() == DATA
    assert len(hub.asked) > policy.attempts


def test_a_server_that_cannot_continue_starts_again(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    counted: list[int] = []
    hub.fault(NAME, cut(3000), without_ranges())
    fetch([hub.url_of(NAME)], target, FILE, policy, on_bytes=counted.append)
    assert target.read_bytes() == DATA
    assert sum(counted) == len(DATA)
    assert hub.ranges(NAME) == ["", "bytes=3000-"]


def test_a_server_that_wants_to_be_left_alone_is_left_alone(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    patient = FetchPolicy(max_wait_seconds=0.4, first_wait_seconds=0.01)
    hub.fault(NAME, busy(429, Retry_After="3600"))
    began = time.monotonic()
    fetch([hub.url_of(NAME)], target, FILE, patient)
    assert time.monotonic() - began >= 0.4
    assert target.read_bytes() == DATA


def test_a_mirror_is_asked_while_the_first_address_wants_to_be_left_alone(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    mirror = hub.put({NAME: DATA})
    hub.fault(f"resolve/main/{NAME}", busy(429, Retry_After="3600"))
    fetch([hub.url_of(NAME), f"{mirror}/{NAME}"], target, FILE, policy)
    assert [asked.path.split("/")[0] for asked in hub.asked] == ["datasets", "files"]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_that_is_down_for_a_moment_is_asked_again(
    hub: HubServer, policy: FetchPolicy, target: Path, status: int
) -> None:
    hub.fault(NAME, busy(status, times=2))
    fetch([hub.url_of(NAME)], target, FILE, policy)
    assert target.read_bytes() == DATA
    assert len(hub.asked) == 3


def test_servers_say_in_three_ways_how_long_to_wait() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    long_ago = format_datetime(datetime.now(UTC) - timedelta(days=9), usegmt=True)
    assert wanted_wait({"retry-after": "7"}) == 7
    assert 57 < (wanted_wait({"retry-after": in_a_minute}) or 0) <= 60
    assert wanted_wait({"retry-after": long_ago}) == 0
    assert wanted_wait({"ratelimit": '"resolvers";r=0;t=55'}) == 55
    assert wanted_wait({"retry-after": "soon"}) is None
    assert wanted_wait({}) is None


def test_a_corrupt_body_of_the_right_length_is_fetched_again(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    counted: list[int] = []
    hub.fault(NAME, corrupt(times=1))
    fetch([hub.url_of(NAME)], target, FILE, policy, on_bytes=counted.append)
    assert target.read_bytes() == DATA
    assert hub.ranges(NAME) == ["", ""]
    assert sum(counted) == len(DATA)


def test_an_address_that_is_corrupt_twice_makes_way_for_the_next(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    mirror = hub.put({NAME: DATA})
    hub.fault(f"resolve/main/{NAME}", corrupt())
    fetch([hub.url_of(NAME), f"{mirror}/{NAME}"], target, FILE, policy)
    assert target.read_bytes() == DATA
    assert len(hub.requests(f"resolve/main/{NAME}")) == 2


def test_a_corrupt_file_without_another_address_is_named_with_both_digests(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    hub.fault(NAME, corrupt())
    with pytest.raises(DataError) as raised:
        fetch([hub.url_of(NAME)], target, FILE, policy)
    middle = len(DATA) // 2
    changed = DATA[:middle] + bytes([DATA[middle] ^ 1]) + DATA[middle + 1 :]
    for part in (NAME, FILE.sha256, digest_of(NAME, changed).sha256, hub.url_of(NAME)):
        assert part in str(raised.value)
    assert not target.exists()
    assert part_of(target).stat().st_size == 0


def test_a_mixture_of_two_addresses_that_is_wrong_does_not_spoil_the_good_one(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    good = hub.put({NAME: DATA})
    bad = hub.put({NAME: bytes([DATA[0] ^ 1]) + DATA[1:]}, "bad")
    hub.fault(f"bad/{NAME}", cut(3000, times=ALWAYS))
    # Slow enough for the first address to be asked again whenever the other one has ended.
    hub.fault(f"mirror/{NAME}", slow(4000, 0.01))
    impatient = FetchPolicy(attempts=3, first_wait_seconds=0.02)
    fetch([f"{bad}/{NAME}", f"{good}/{NAME}"], target, FILE, impatient)
    assert target.read_bytes() == DATA


def test_two_addresses_that_cut_again_and_again_come_to_an_end(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    places = [hub.put({NAME: DATA}, name) for name in ("one", "two")]
    for name in ("one", "two"):
        hub.fault(f"{name}/{NAME}", cut(1 + len(DATA) // 3, times=ALWAYS))
    # After that, copies are mixed no more.
    part_of(target).write_bytes(b"x" * 3000)
    ends_at = time.monotonic() + 20
    urls = [f"{place}/{NAME}" for place in places]
    fetch(urls, target, FILE, policy, stop=lambda: time.monotonic() > ends_at)
    assert target.read_bytes() == DATA


def test_an_address_that_starts_anew_and_ends_now_here_now_there_is_given_up(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    here, there = (cut(len(DATA) // share, ranges=False) for share in (3, 2))
    hub.fault(NAME, *[here, there] * (ALWAYS // 10_000))
    ends_at = time.monotonic() + 20
    with pytest.raises(DataError, match=r"the connection was cut, 1\d tries"):
        fetch(
            *([hub.url_of(NAME)], target, FILE, replace(policy, max_wait_seconds=0.01)),
            stop=lambda: time.monotonic() > ends_at,
        )


def test_a_missing_file_is_named_with_every_address(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    mirror = f"{hub.endpoint}/files/mirror/{NAME}"
    hub.fault(f"resolve/main/{NAME}", missing())
    with pytest.raises(DataError) as raised:
        fetch([hub.url_of(NAME), mirror], target, FILE, policy)
    for part in (NAME, hub.url_of(NAME), mirror, "not there (HTTP 404)"):
        assert part in str(raised.value)
    assert len(hub.asked) == 2


def test_a_file_of_another_size_is_refused_before_it_is_fetched(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    place = hub.put({NAME: DATA + b"more"})
    with pytest.raises(DataError, match=f"it has {len(DATA) + 4:,} bytes, expected {len(DATA):,}"):
        fetch([f"{place}/{NAME}"], target, FILE, policy)
    assert part_of(target).stat().st_size == 0


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        pytest.param(DATA[:5000], ["bytes=5000-"], id="the beginning"),
        pytest.param(b"x" * 5000, ["bytes=5000-", ""], id="something else"),
        pytest.param(DATA, [], id="all of it"),
        pytest.param(DATA + b"x", [""], id="more than all"),
        pytest.param(DATA[:-1] + b"x", [""], id="all but its last byte"),
    ],
)
def test_what_an_earlier_process_left_is_used_only_if_it_is_right(
    hub: HubServer, policy: FetchPolicy, target: Path, left: bytes, asked: list[str]
) -> None:
    part_of(target).write_bytes(left)
    counted: list[int] = []
    fetch([hub.url_of(NAME)], target, FILE, policy, on_bytes=counted.append)
    assert target.read_bytes() == DATA
    assert hub.ranges(NAME) == asked
    assert sum(counted) == len(DATA)


def test_a_file_that_is_there_is_left_alone_and_a_wrong_one_is_replaced(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    target.write_bytes(DATA)
    fetch([hub.url_of(NAME)], target, FILE, policy)
    assert hub.asked == []
    target.write_bytes(b"x" * len(DATA))
    fetch([hub.url_of(NAME)], target, FILE, policy)
    assert target.read_bytes() == DATA


def test_a_token_goes_to_the_hub_and_to_nobody_else(tmp_path: Path) -> None:
    with HubServer(redirects=True) as hub, HubServer() as other:
        hub.add({NAME: DATA})
        hub.wants_token = TOKEN
        mirror = other.put({NAME: DATA})
        policy = FetchPolicy(endpoint=hub.endpoint)
        urls = [f"{mirror}/not_{NAME}", f"hf://datasets/some/climbmix/{NAME}"]
        fetch(urls, tmp_path / NAME, FILE, policy, headers=hub_headers(TOKEN))
        assert (tmp_path / NAME).read_bytes() == DATA
        assert [asked.authorization for asked in other.asked] == [""]
        by_place = {asked.path.split("/")[0]: asked.authorization for asked in hub.asked}
        assert by_place == {"datasets": f"Bearer {TOKEN}", "cdn": ""}


def test_a_hub_that_wants_a_token_says_so(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    hub.wants_token = TOKEN
    with pytest.raises(DataError, match=r"refused \(HTTP 401\).*token"):
        fetch([hub.url_of(NAME)], target, FILE, policy)
    assert len(hub.asked) == 1


def test_messages_hold_no_passwords_and_no_signatures(policy: FetchPolicy, target: Path) -> None:
    url = "http://user:pa55word@127.0.0.1:9/shard.parquet?signature=abc"
    assert shown_url(url) == "http://127.0.0.1:9/shard.parquet"
    with pytest.raises(DataError) as raised:
        fetch([url], target, FILE, FetchPolicy(attempts=1))
    assert "pa55word" not in str(raised.value)
    assert "signature" not in str(raised.value)


def test_a_server_that_is_not_there_is_one_message_after_all_tries(target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    policy = FetchPolicy(attempts=3, first_wait_seconds=0.01)
    with pytest.raises(DataError, match=r"127\.0\.0\.1.*3 tries.*check the network"):
        fetch([f"http://127.0.0.1:{port}/{NAME}"], target, FILE, policy)


def test_a_server_that_hangs_or_crawls_makes_way_for_the_next(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    impatient = FetchPolicy(attempts=1, read_seconds=0.2)
    good = hub.put({NAME: DATA})
    crawling = hub.put({NAME: DATA}, "crawling")
    hanging = hub.put({NAME: DATA}, "hanging")
    hub.fault(f"crawling/{NAME}", slow(10, 0.03))
    hub.fault(f"hanging/{NAME}", slow(10, 0.7))
    urls = [f"{place}/{NAME}" for place in (crawling, hanging, good)]
    fetch(urls, target, FILE, impatient)
    assert target.read_bytes() == DATA
    assert [bool(hub.requests(f"{place}/{NAME}")) for place in ("crawling", "hanging")] == [
        True
    ] * 2


def test_offline_only_what_is_on_this_machine_is_used(
    hub: HubServer, tmp_path: Path, target: Path
) -> None:
    offline = FetchPolicy(offline=True)
    with pytest.raises(DataError, match=f"offline, and {NAME} is not at hand"):
        fetch([hub.url_of(NAME)], target, FILE, offline)
    (tmp_path / "copy.parquet").write_bytes(DATA)
    fetch([hub.url_of(NAME), str(tmp_path / "copy.parquet")], target, FILE, offline)
    assert target.read_bytes() == DATA
    assert hub.asked == []


def test_folders_and_other_filesystems_are_addresses_too(tmp_path: Path, target: Path) -> None:
    import fsspec

    policy = FetchPolicy()
    part_of(target).write_bytes(DATA[:100])
    given = tmp_path / "given.parquet"
    given.write_bytes(DATA)
    fetch([f"file://{given}"], target, FILE, policy)
    assert target.read_bytes() == DATA
    fsspec.filesystem("memory").pipe_file("/fetching/shard", DATA)
    fetch(["memory://fetching/shard"], tmp_path / "again", FILE, policy)
    assert (tmp_path / "again").read_bytes() == DATA
    with pytest.raises(DataError, match="not there"):
        fetch([str(tmp_path / "nothing")], tmp_path / "third", FILE, policy)


def test_two_at_once_fetch_a_file_once(hub: HubServer, policy: FetchPolicy, target: Path) -> None:
    hub.fault(NAME, slow(4000, 0.01))
    threads = [
        threading.Thread(target=fetch, args=([hub.url_of(NAME)], target, FILE, policy))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert target.read_bytes() == DATA
    assert len(hub.asked) == 1


def test_who_is_asked_to_stop_keeps_what_has_arrived(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    hub.fault(NAME, slow(1000, 0.01, times=1))
    arrived: list[int] = []
    with pytest.raises(JobStoppedError, match=NAME):
        fetch(
            *([hub.url_of(NAME)], target, FILE, policy),
            on_bytes=arrived.append,
            stop=lambda: sum(arrived) >= 3000,
        )
    assert not target.exists()
    kept = part_of(target).stat().st_size
    assert kept >= 3000
    fetch([hub.url_of(NAME)], target, FILE, policy)
    assert target.read_bytes() == DATA
    assert hub.ranges(NAME)[-1] == f"bytes={kept}-"


def test_a_wait_ends_when_stop_says_so(hub: HubServer, target: Path) -> None:
    hub.fault(NAME, busy(429, Retry_After="60"))
    began = time.monotonic()
    with pytest.raises(JobStoppedError):
        fetch(
            *([hub.url_of(NAME)], target, FILE, FetchPolicy()),
            stop=lambda: time.monotonic() - began > 0.2,
        )
    assert time.monotonic() - began < 5


def test_a_place_that_cannot_be_written_is_not_taken_for_a_bad_network(
    hub: HubServer, policy: FetchPolicy, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreUnavailableError, match="Could not write"):
        fetch([hub.url_of(NAME)], tmp_path / "file" / NAME, FILE, policy)
    part_of(tmp_path / NAME).mkdir()
    with pytest.raises(StoreUnavailableError, match="Could not write"):
        fetch([hub.url_of(NAME)], tmp_path / NAME, FILE, policy)
    assert hub.asked == []


def test_a_full_disk_is_told_and_what_fitted_is_continued(
    hub: HubServer, policy: FetchPolicy, target: Path
) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StoreUnavailableError, match="Free some space"):
            fetch([hub.url_of(NAME)], target, FILE, policy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not target.exists()
    fetch([hub.url_of(NAME)], target, FILE, policy)
    assert target.read_bytes() == DATA
    assert hub.ranges(NAME) == ["", "bytes=20000-"]
