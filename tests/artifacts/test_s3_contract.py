"""What a store of any kind promises about its files; then what a bucket adds."""

import logging
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3_server import SECRET_KEY, S3Server
from s3_tools import (
    FLIP_ANSWER,
    FLIP_REQUEST,
    LOSE_ANSWER,
    REFUSE,
    Proxy,
    once,
    other_host,
    place_on,
    proxy_to,
)
from store_tools import open_store

from nanochat_core.artifacts import s3_files
from nanochat_core.artifacts.canonical import sha256_hex
from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.location import open_files
from nanochat_core.errors import StoreUnavailableError

PART_BYTES = 5 * 2**20
"""What S3 allows at least, but for the last part."""

ALL_KINDS = ("local", "memory", pytest.param("s3", marks=pytest.mark.s3))


@pytest.fixture
def s3_place(s3_server: S3Server) -> str:
    """A store URL on a real S3 server, where nothing is yet."""
    return place_on(s3_server)


@pytest.fixture(params=ALL_KINDS)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """An empty tree of files, of each kind."""
    if request.param == "s3":
        return open_files(request.getfixturevalue("s3_place"))
    return open_store(request.param, tmp_path).files


def test_what_is_written_is_there_with_its_size_and_a_version(files: Files) -> None:
    files.write("a/one", b"12345")
    first = files.info("a/one")
    assert (first.size, files.size("a/one"), files.read("a/one")) == (5, 5, b"12345")
    assert first.version
    assert files.info("a/one") == first
    files.write("a/one", b"54321")
    assert files.info("a/one").version != first.version
    assert files.sha256("a/one") == sha256_hex(b"54321")
    for ask in (files.read, files.info, files.size):
        with pytest.raises(FileNotFoundError):
            ask("a/nothing")


def test_one_listing_tells_all_files_below_a_folder(files: Files) -> None:
    assert files.infos("a") == {}
    for path in ("a/one", "a/b/two", "a/b/c/three", "ab/four"):
        files.write(path, path.encode())
    assert files.infos("a") == {
        name: files.info(f"a/{name}") for name in ("one", "b/two", "b/c/three")
    }
    assert files.names("a") == ("b", "one")
    assert set(files.names("")) >= {"a", "ab"}
    files.remove("a/b")
    assert set(files.infos("a")) == {"one"}
    files.remove("a/one")
    files.remove("a/one")
    assert files.infos("a") == {}
    assert files.read("ab/four") == b"ab/four"


def test_of_many_who_create_a_file_one_is_first(files: Files) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: files.create("lease", b"%d" % i), range(8)))
    assert sum(won) == 1
    assert files.read("lease") == b"%d" % won.index(True)


def test_a_file_is_replaced_only_as_long_as_it_is_unchanged(files: Files) -> None:
    assert files.replace_if("lease", b"zero", "any") is None
    assert files.create("lease", b"one")
    first = str(files.info("lease").version)
    second = files.replace_if("lease", b"two", first)
    assert second == files.info("lease").version != first
    assert files.replace_if("lease", b"late", first) is None
    assert files.read("lease") == b"two"


def test_of_many_who_replace_a_file_one_is_first_each_time(files: Files) -> None:
    files.create("lease", b"start")
    for step in range(3):
        version = str(files.info("lease").version)
        with ThreadPoolExecutor(8) as pool:
            won = list(
                pool.map(
                    lambda i: files.replace_if("lease", b"%d %d" % (step, i), version),  # noqa: B023
                    range(8),
                )
            )
        assert [v for v in won if v] == [files.info("lease").version]
        assert files.read("lease").startswith(b"%d " % step)


def test_a_store_says_in_one_line_what_it_can_do(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files.prepare(0)
    can = files.capabilities()
    assert can.conditional_create
    assert can.conditional_replace
    said = [line for line in caplog.messages if "create-if-absent" in line]
    if files.local_path("") is None:
        assert len(said) == 1
        assert "create-if-absent works (" in said[0]
        assert "replace-if-unchanged works (" in said[0]
        assert files.infos("cache") == {}


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES + 1])
@pytest.mark.s3
def test_files_of_any_size_go_there_and_back_in_parts(
    s3_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(s3_files, "PART_BYTES", PART_BYTES)
    files, data = open_files(s3_place), some_bytes(size)
    (tmp_path / "source").write_bytes(data)
    for share in (True, False):
        assert files.put(tmp_path / "source", "a/file", share=share) == sha256_hex(data)
    assert files.info("a/file").size == size
    assert files.fetch("a/file", tmp_path / "target") == sha256_hex(data)
    assert (tmp_path / "target").read_bytes() == data
    assert files.sha256("a/file") == sha256_hex(data)
    assert files.sweep_uploads(older_than_seconds=0) == 0


def test_a_huge_file_has_parts_that_are_large_enough_to_be_few() -> None:
    for size in (0, 10**9, 10**11, 5 * 10**12):
        assert size / s3_files._part_bytes(size) <= s3_files.MAX_PARTS + 1


@pytest.mark.s3
def test_a_listing_of_many_pages_is_whole(s3_place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_files, "_LIST_NAMES", 3)
    files = open_files(s3_place)
    names = sorted(f"{i:02d}" for i in range(10))
    for name in names:
        files.write(f"a/{name}", b"x")
        files.write(f"b/{name}/deep", b"x")
    assert sorted(files.infos("a")) == names
    assert files.names("a") == files.names("b") == tuple(names)


@pytest.mark.s3
def test_uploads_that_nobody_finished_are_swept(s3_server: S3Server, s3_place: str) -> None:
    files, client = open_files(s3_place), s3_server.client()
    bucket, prefix = s3_place.removeprefix("s3://").split("/", 1)
    client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/pretrain/left")
    client.create_multipart_upload(Bucket=bucket, Key="elsewhere/left")
    assert files.sweep_uploads() == 0, "young ones may still be at work"
    assert files.sweep_uploads(older_than_seconds=0) == 1
    assert files.sweep_uploads(older_than_seconds=0) == 0
    left = client.list_multipart_uploads(Bucket=bucket, Prefix="elsewhere")["Uploads"]
    assert [upload["Key"] for upload in left] == ["elsewhere/left"]


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What stands between this process and the server."""
    with proxy_to(s3_server.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


@pytest.mark.s3
@pytest.mark.parametrize("word", [LOSE_ANSWER, REFUSE])
def test_a_create_whose_answer_was_lost_knows_its_own_bytes(
    proxy: Proxy, s3_place: str, word: str
) -> None:
    files = open_files(s3_place)
    proxy.rule = once(word, "PUT", "lease")
    assert files.create("lease", b"same")
    assert (word, "PUT") in [(fate, method) for method, _, fate in proxy.seen]
    assert not files.create("lease", b"same"), "another's, though it holds the same bytes"


@pytest.mark.s3
def test_a_replacement_whose_answer_was_lost_knows_its_own_bytes(
    proxy: Proxy, s3_place: str
) -> None:
    files = open_files(s3_place)
    files.create("lease", b"one")
    first = str(files.info("lease").version)
    proxy.rule = once(LOSE_ANSWER, "PUT", "lease")
    assert files.replace_if("lease", b"two", first) == files.info("lease").version
    assert files.replace_if("lease", b"two", first) is None


@pytest.mark.s3
@pytest.mark.parametrize(
    ("word", "method", "part"),
    [
        (LOSE_ANSWER, "POST", "uploads"),
        (LOSE_ANSWER, "PUT", "partNumber=2"),
        (LOSE_ANSWER, "POST", "uploadId"),
        (REFUSE, "PUT", "partNumber=3"),
        (REFUSE, "HEAD", "a/file"),
    ],
)
def test_an_upload_in_parts_goes_on_where_it_was_cut(
    proxy: Proxy,
    s3_place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    method: str,
    part: str,
) -> None:
    monkeypatch.setattr(s3_files, "PART_BYTES", PART_BYTES)
    files, data = open_files(s3_place), some_bytes(2 * PART_BYTES + 1)
    (tmp_path / "source").write_bytes(data)
    proxy.rule = once(word, method, part)
    assert files.put(tmp_path / "source", "a/file", share=True) == sha256_hex(data)
    assert word in [fate for _, _, fate in proxy.seen]
    assert sum("partNumber=1&" in path for _, path, _ in proxy.seen) == 1, "all was sent again"
    assert files.sha256("a/file") == sha256_hex(data)


@pytest.mark.s3
def test_an_upload_that_the_server_forgot_is_sent_again(
    proxy: Proxy,
    s3_server: S3Server,
    s3_place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_files, "PART_BYTES", PART_BYTES)
    files, data = open_files(s3_place), some_bytes(2 * PART_BYTES + 1)
    (tmp_path / "source").write_bytes(data)
    client, bucket, left = s3_server.client(), s3_place.split("/")[2], [1]

    def rule(method: str, path: str) -> str:
        if method == "PUT" and "partNumber=3" in path and left:
            left.clear()
            for upload in client.list_multipart_uploads(Bucket=bucket)["Uploads"]:
                client.abort_multipart_upload(
                    Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )
        return "forward"

    proxy.rule = rule
    assert files.put(tmp_path / "source", "a/file", share=True) == sha256_hex(data)
    assert files.sha256("a/file") == sha256_hex(data)


@pytest.mark.s3
def test_bytes_changed_on_the_way_there_are_refused_and_sent_again(
    proxy: Proxy, s3_place: str
) -> None:
    files = open_files(s3_place)
    proxy.rule = once(FLIP_REQUEST, "PUT", "a/file")
    files.write("a/file", b"content")
    assert [fate for method, _, fate in proxy.seen if method == "PUT"] == [FLIP_REQUEST, "forward"]
    assert files.read("a/file") == b"content"


@pytest.mark.s3
def test_bytes_changed_on_the_way_back_are_noticed(
    proxy: Proxy, s3_place: str, tmp_path: Path
) -> None:
    files = open_files(s3_place)
    files.write("a/file", b"content")
    proxy.rule = once(FLIP_ANSWER, "GET", "a/file")
    assert files.fetch("a/file", tmp_path / "target") != sha256_hex(b"content")
    assert files.fetch("a/file", tmp_path / "target") == sha256_hex(b"content")


@pytest.mark.s3
def test_a_file_replaced_while_it_is_read_is_no_mixture(s3_place: str, tmp_path: Path) -> None:
    files = open_files(s3_place)
    files.write("a/file", b"content")
    before = files.info("a/file")
    files.write("a/file", b"CONTENT")
    with pytest.raises(FileNotFoundError, match="replaced while it was read"):
        files.fetch("a/file", tmp_path / "target", before)


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_said_at_once(s3_server: S3Server, tmp_path: Path) -> None:
    files = open_files("s3://no-such-bucket/store")
    (tmp_path / "source").write_bytes(b"x")
    for action in (
        lambda: files.read("a"),
        lambda: files.info("a"),
        lambda: files.names("a"),
        lambda: files.infos("a"),
        lambda: files.create("a", b"x"),
        lambda: files.put(tmp_path / "source", "a", share=True),
        lambda: files.prepare(0),
    ):
        with pytest.raises(StoreUnavailableError, match="has no bucket: make it first"):
            action()


@pytest.mark.s3
@pytest.mark.parametrize("secret", ["a-wrong-secret-which-nobody-may-see", None])
def test_missing_and_wrong_credentials_say_which_variables_to_set(
    s3_place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    secret: str | None,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if secret is None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    store = other_host(s3_place, tmp_path)
    for action in (store.check_writable, store.list, lambda: store.files.info("a")):
        with pytest.raises(StoreUnavailableError, match="AWS_SECRET_ACCESS_KEY") as raised:
            action()
        assert "does not answer" not in str(raised.value)
        assert not secret or secret not in str(raised.value) + caplog.text


@pytest.mark.s3
def test_no_secret_is_seen_in_what_people_see(
    proxy: Proxy, s3_place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = other_host(s3_place, tmp_path)
    proxy.rule = once(REFUSE, "GET", "list-type")
    store.check_writable(0)
    store.list()
    with pytest.raises(FileNotFoundError) as raised:
        store.files.read("nothing")
    seen = [caplog.text, repr(store), repr(store.files), repr(vars(store.files))]
    seen += [repr(raised.value), str(raised.value), repr(store.files._open())]
    assert "does not answer" in caplog.text
    assert SECRET_KEY not in "".join(seen)
