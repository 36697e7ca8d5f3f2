"""What a published set has is known with its digests before anything is fetched."""

import hashlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import (
    REPO,
    TOKEN,
    HubServer,
    busy,
    corrupt,
    cut,
    digest_of,
    make_shards,
    missing,
    sums_of,
)

from nanochat_core.data.fetching import FetchPolicy, fetch_all
from nanochat_core.data.hub import (
    choose_shards,
    hub_headers,
    is_whole_set,
    list_files,
    list_shards,
    shard_urls,
)
from nanochat_core.data.hub_address import HubAddress
from nanochat_core.data.recipes import FileDigest
from nanochat_core.errors import ConfigError, DataError
from nanochat_core.logs import Progress

SHARDS = make_shards(7)
DIGESTS = [digest_of(name, data) for name, data in SHARDS.items()]
SET = f"hf://datasets/{REPO}"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(page_size=3) as server:
        server.add({"README.md": b"about", **SHARDS})
        server.without_lfs.add("README.md")
        yield server


@pytest.fixture
def policy(hub: HubServer) -> FetchPolicy:
    return FetchPolicy(
        connect_seconds=2, read_seconds=2, first_wait_seconds=0.01, endpoint=hub.endpoint
    )


def test_shards_of_the_hub_come_in_order_with_size_and_sha256(
    hub: HubServer, policy: FetchPolicy
) -> None:
    assert list_shards(SET, policy=policy) == DIGESTS
    assert len(hub.asked) == 3
    assert all(asked.path.startswith("api/") for asked in hub.asked)


def test_a_revision_and_a_folder_are_asked_for(hub: HubServer, policy: FetchPolicy) -> None:
    hub.add({"x.parquet": b"x"}, revision="refs/convert/parquet", folder="default/train")
    (file,) = list_shards(f"{SET}@refs/convert/parquet/default/train", policy=policy)
    assert file == digest_of("x.parquet", b"x")
    assert list_shards(f"{SET}@refs%2Fconvert%2Fparquet/default/train/", policy=policy) == [file]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("hf://datasets/a/b", HubAddress("a/b", "main", "")),
        ("hf://datasets/a/b/", HubAddress("a/b", "main", "")),
        ("hf://datasets/a/b@v1.0/c/d", HubAddress("a/b", "v1.0", "c/d")),
        ("hf://datasets/a/b@refs/pr/7", HubAddress("a/b", "refs/pr/7", "")),
        ("hf://datasets/a/b@x%2Fy/z", HubAddress("a/b", "x/y", "z")),
    ],
)
def test_an_address_has_a_repository_a_revision_and_a_path(url: str, expected: HubAddress) -> None:
    assert HubAddress.parse(url) == expected


@pytest.mark.parametrize(
    "url", ["hf://a/b", "hf://datasets/a", "hf://models/a/b", "hf://spaces/a b/c"]
)
def test_an_address_of_another_form_is_refused_with_the_right_one(url: str) -> None:
    with pytest.raises(DataError, match="expected hf://datasets/OWNER/NAME"):
        HubAddress.parse(url)


def test_names_are_quoted_in_urls() -> None:
    address = HubAddress("a/b", "refs/pr/1", "x y/z#1.parquet")
    assert address.file_url("http://hub/") == (
        "http://hub/datasets/a/b/resolve/refs%2Fpr%2F1/x%20y/z%231.parquet"
    )


def test_a_listing_survives_what_passes(hub: HubServer, policy: FetchPolicy) -> None:
    hub.fault("tree/main", busy(503, times=2), busy(429, Retry_After="0"))
    assert list_shards(SET, policy=policy) == DIGESTS


def test_a_set_that_is_not_there_is_named(policy: FetchPolicy) -> None:
    with pytest.raises(DataError, match="hf://datasets/some/other is not on the hub at http"):
        list_shards("hf://datasets/some/other", policy=policy)


def test_a_folder_without_shards_says_what_it_has(hub: HubServer, policy: FetchPolicy) -> None:
    hub.add({"notes.txt": b"none"}, repo="a/b")
    with pytest.raises(DataError, match=r"no \.parquet files \(it has notes\.txt\)"):
        list_shards("hf://datasets/a/b", policy=policy)


def test_folders_inside_are_told_where_shards_are_missing(
    hub: HubServer, policy: FetchPolicy
) -> None:
    hub.add({"x.parquet": b"x"}, repo="a/b", folder="data/en")
    with pytest.raises(DataError, match=r"it has data/\); give the folder that has the shards"):
        list_shards("hf://datasets/a/b", policy=policy)


def test_of_files_that_are_named_by_split_no_test_rows_are_trained_on(
    hub: HubServer, policy: FetchPolicy
) -> None:
    names = ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]
    hub.add({f"{name}.parquet": name.encode() for name in names}, repo="a/b")
    found = list_shards("hf://datasets/a/b", policy=policy)
    chosen = [file.name.removesuffix(".parquet") for file in choose_shards(found, None).files]
    assert chosen == names
    hub.add({"validation-00000-of-00001.parquet": b"v", "notes.parquet": b"n"}, repo="a/b")
    found = list_shards("hf://datasets/a/b", policy=policy, num_train=1)
    assert [file.name[:5] for file in choose_shards(found, 1).files] == ["train", "valid"]


def test_a_shard_whose_sha256_nobody_tells_is_refused(hub: HubServer, policy: FetchPolicy) -> None:
    hub.without_lfs.add("shard_00004.parquet")
    with pytest.raises(DataError, match=r"no sha256 of shard_00004\.parquet"):
        list_shards(SET, policy=policy)
    assert len(list_shards(SET, policy=policy, num_train=2)) == 3


def test_a_hub_that_does_not_answer_is_one_message(policy: FetchPolicy) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    alone = replace(policy, endpoint=endpoint, attempts=2)
    with pytest.raises(DataError, match=f"the list of files of {SET} could not be read") as raised:
        list_shards(SET, policy=alone)
    assert endpoint in str(raised.value)


def test_offline_nothing_is_listed_from_elsewhere(hub: HubServer, policy: FetchPolicy) -> None:
    with pytest.raises(DataError, match="offline"):
        list_shards(SET, policy=replace(policy, offline=True))
    assert hub.asked == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["shard_00000.parquet", "shard_00001.parquet"], True),
        (["shard_9.parquet", "shard_10.parquet"], True),
        (["shard_00000.parquet", "shard_00002.parquet"], False),
        (["train-00001-of-00003.parquet", "train-00002-of-00003.parquet"], True),
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], False),
        (["train-00002-of-00003.parquet", "validation-00000-of-00001.parquet"], True),
        (["train-00001-of-00003.parquet", "test-00002-of-00003.parquet"], False),
        (["a.parquet", "b.parquet"], False),
        (["a1.parquet", "b2.parquet"], False),
        (["v1-0.parquet", "v2-1.parquet"], False),
    ],
)
def test_a_publisher_who_counts_tells_whether_shards_are_all(
    names: list[str], expected: bool
) -> None:
    assert is_whole_set(names) is expected


def test_something_that_is_no_hub_is_told_from_one(hub: HubServer, policy: FetchPolicy) -> None:
    hub.files["login/api/datasets/some/climbmix/tree/main"] = b"<html>please log in</html>"
    page = replace(policy, endpoint=f"{hub.endpoint}/login")
    with pytest.raises(DataError, match="does not answer as a hub does"):
        list_shards(SET, policy=page)


def test_a_token_is_shown_to_the_hub_and_never_in_a_message(
    hub: HubServer, policy: FetchPolicy
) -> None:
    hub.wants_token = TOKEN
    assert list_shards(SET, policy=policy, headers=hub_headers(TOKEN)) == DIGESTS
    with pytest.raises(DataError, match=r"HTTP 401.*token") as raised:
        list_shards(SET, policy=policy, headers=hub_headers("hf_wrong-one"))
    assert "hf_wrong-one" not in str(raised.value)
    with pytest.raises(ConfigError) as refused:
        hub_headers("hf_with a line\n")
    assert "hf_with" not in str(refused.value)


def test_a_folder_here_with_and_without_digests_is_the_same_set(
    tmp_path: Path, policy: FetchPolicy
) -> None:
    for name, data in SHARDS.items():
        (tmp_path / name).write_bytes(data)
    assert list_shards(str(tmp_path), policy=policy) == DIGESTS
    (tmp_path / "sha256sums.txt").write_bytes(sums_of(SHARDS))
    assert list_shards(f"file://{tmp_path}", policy=policy) == DIGESTS
    assert list_shards(str(tmp_path), policy=replace(policy, offline=True)) == DIGESTS


def test_of_a_big_folder_only_the_shards_that_are_wanted_are_read(
    tmp_path: Path, policy: FetchPolicy
) -> None:
    for name, data in SHARDS.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "shard_00003.parquet").unlink()
    (tmp_path / "shard_00003.parquet").mkdir()
    wanted = [DIGESTS[0], DIGESTS[1], DIGESTS[-1]]
    assert list_shards(str(tmp_path), policy=policy, num_train=2) == wanted


def test_a_url_with_digests_is_the_same_set(hub: HubServer, policy: FetchPolicy) -> None:
    place = hub.put({**SHARDS, "SHA256SUMS": sums_of(SHARDS)})
    hub.asked.clear()
    assert list_shards(place, policy=policy) == DIGESTS
    assert len([asked for asked in hub.asked if asked.method == "HEAD"]) == len(SHARDS)
    hub.asked.clear()
    assert list_shards(f"{place}/", policy=policy, num_train=1) == [DIGESTS[0], DIGESTS[-1]]
    assert len(hub.asked) == 3


def test_a_url_without_digests_is_refused_with_what_to_do(
    hub: HubServer, policy: FetchPolicy
) -> None:
    place = hub.put(SHARDS)
    with pytest.raises(DataError, match=r"no SHA256SUMS.*sha256sum \*\.parquet > SHA256SUMS"):
        list_shards(place, policy=policy)


def test_a_listed_file_that_is_not_there_is_named(hub: HubServer, policy: FetchPolicy) -> None:
    some = dict(list(SHARDS.items())[:2])
    place = hub.put({**some, "SHA256SUMS": sums_of(SHARDS)})
    with pytest.raises(DataError, match=r"shard_0000\d\.parquet is in the list of .* not there"):
        list_shards(place, policy=policy)


def test_a_list_of_digests_that_is_none_is_refused_by_its_line(
    tmp_path: Path, policy: FetchPolicy
) -> None:
    (tmp_path / "SHA256SUMS").write_text("# ours\n\n0123  short.parquet\n")
    with pytest.raises(DataError, match=r"SHA256SUMS:3: expected a sha256, two spaces"):
        list_shards(str(tmp_path), policy=policy)


def test_names_that_lead_out_of_the_folder_are_left_out(
    hub: HubServer, policy: FetchPolicy
) -> None:
    evil = {"../../evil.parquet": b"e", ".hidden.parquet": b"h", "a\\b.parquet": b"w"}
    place = hub.put({**SHARDS, "SHA256SUMS": sums_of({**SHARDS, **evil})})
    assert list_shards(place, policy=policy) == DIGESTS


def test_other_files_are_listed_when_they_are_chosen(hub: HubServer, policy: FetchPolicy) -> None:
    place = hub.put({"a.zip": b"z", "SHA256SUMS": sums_of({"a.zip": b"z"})}, "zips")
    found = list_files(place, lambda names: names, policy=policy)
    assert found == [digest_of("a.zip", b"z")]


def test_the_first_shards_are_for_training_and_the_last_for_validation() -> None:
    assert choose_shards(DIGESTS[::-1], 2).files == (DIGESTS[0], DIGESTS[1], DIGESTS[-1])
    assert choose_shards(DIGESTS, None).files == tuple(DIGESTS)
    by_count = [FileDigest(name=f"s{n}.parquet", sha256="0" * 64, bytes=1) for n in (10, 9, 2)]
    assert [file.name for file in choose_shards(by_count, 2).files] == [
        *("s2.parquet", "s9.parquet", "s10.parquet")
    ]


def test_more_shards_than_there_are_is_refused_with_how_many_there_are() -> None:
    with pytest.raises(DataError, match="7 train shards were asked of a set that has 6"):
        choose_shards(DIGESTS, 7)
    with pytest.raises(DataError, match="the set has 1 shards"):
        choose_shards(DIGESTS[:1], None)


def test_a_file_is_looked_for_at_its_publisher_and_then_at_the_mirrors() -> None:
    mirrors = ["https://m/x/?sig=1", "s3://b/climbmix/", "/data/climbmix"]
    assert shard_urls(f"{SET}@v2/data", mirrors, DIGESTS[3]) == [
        "hf://datasets/some/climbmix@v2/data/shard_00003.parquet",
        "https://m/x/shard_00003.parquet?sig=1",
        "s3://b/climbmix/shard_00003.parquet",
        "/data/climbmix/shard_00003.parquet",
    ]


def fetch_shards(policy: FetchPolicy, folder: Path, num_train: int, *mirrors: str) -> list[Path]:
    found = list_shards(SET, policy=policy, num_train=num_train)
    done: list[Path] = []
    fetch_all(
        choose_shards(found, num_train).files,
        lambda file: shard_urls(SET, mirrors, file),
        *(folder, policy),
        done=lambda path, _file: done.append(path),
        progress=Progress(None, 0, ""),
    )
    return done


def test_a_set_comes_right_through_all_that_passes(
    hub: HubServer, policy: FetchPolicy, tmp_path: Path
) -> None:
    hub.fault("tree/main", cut(40), busy(503))
    hub.fault("shard_00000.parquet", cut(1000, times=2), busy(429, Retry_After="0"))
    hub.fault("shard_00001.parquet", corrupt(times=1), busy(503, times=2))
    hub.fault("main/shard_00006.parquet", missing())
    mirror = hub.put(SHARDS)
    done = fetch_shards(policy, tmp_path, 2, mirror)
    wanted = ["shard_00000.parquet", "shard_00001.parquet", "shard_00006.parquet"]
    assert sorted(path.name for path in done) == wanted
    for path in done:
        assert path.read_bytes() == SHARDS[path.name]


def test_a_bigger_set_fetches_only_what_is_new(
    hub: HubServer, policy: FetchPolicy, tmp_path: Path
) -> None:
    fetch_shards(policy, tmp_path, 2)
    hub.asked.clear()
    assert len(fetch_shards(policy, tmp_path, 4)) == 5
    asked = {asked.path.rsplit("/", 1)[-1] for asked in hub.asked if asked.path.startswith("data")}
    assert asked == {"shard_00002.parquet", "shard_00003.parquet"}


@pytest.mark.s3
def test_an_object_store_is_a_publisher_and_a_mirror(
    s3_url: str, hub: HubServer, policy: FetchPolicy, tmp_path: Path
) -> None:
    import fsspec

    place = f"{s3_url}/climbmix"
    files, root = fsspec.core.url_to_fs(place)
    files.pipe({f"{root}/{name}": data for name, data in SHARDS.items()})
    files.pipe_file(f"{root}/SHA256SUMS", sums_of(SHARDS))
    assert list_shards(place, policy=policy) == DIGESTS
    hub.fault("main/shard_00001.parquet", missing())
    left = tmp_path / "shard_00001.parquet.part"
    left.write_bytes(SHARDS["shard_00001.parquet"][:1000])
    for path in fetch_shards(policy, tmp_path, 2, place):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest == digest_of(path.name, SHARDS[path.name]).sha256
    with pytest.raises(DataError, match="no SHA256SUMS"):
        list_shards(f"{s3_url}/nothing", policy=policy)
