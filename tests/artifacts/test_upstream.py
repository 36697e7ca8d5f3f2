"""A store that looks into another one, which is only read, for what it has not itself."""

import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from store_tools import (
    OUTPUT,
    attempt_path,
    fill,
    flip_byte,
    make_request,
    manifest_names,
    open_store,
    publish,
)

from nanochat_core.artifacts.filesystems import MemoryFiles
from nanochat_core.artifacts.stamps import RACY_NANOSECONDS
from nanochat_core.artifacts.store import ArtifactStore, only_read


@pytest.fixture(params=["local", "memory"])
def upstream(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return open_store(request.param, tmp_path / "upstream")


def below(upstream: ArtifactStore, folder: Path) -> ArtifactStore:
    """An empty local store with an upstream."""
    return ArtifactStore(str(folder / "store"), upstream=upstream)


def contents(store: ArtifactStore) -> dict[str, bytes]:
    """Every file of its one station."""
    paths = [f"pretrain/{path}" for path in store.files.infos("pretrain")]
    return {path: store.files.read(path) for path in paths}


def test_a_miss_is_copied_from_upstream_which_is_not_written(
    upstream: ArtifactStore, tmp_path: Path
) -> None:
    there = publish(upstream, make_request())
    before = contents(upstream)
    store = below(upstream, tmp_path)
    found = store.lookup(make_request())
    assert found is not None
    assert found.digest == there.digest
    assert (store.materialize(found) / "parts" / "a.txt").read_text() == "hello"
    assert contents(upstream) == before
    alone = ArtifactStore(store.url)
    assert alone.lookup(make_request()) == found
    assert store.lookup(make_request(depth=3)) is None


def test_a_folder_upstream_gets_no_notes_of_its_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    upstream = open_store("local", tmp_path / "upstream")
    there = publish(upstream, make_request())
    long_ago = 1_600_000_000
    for path in (tmp_path / "upstream").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    before = sorted((tmp_path / "upstream").rglob("*"))
    time.sleep(2 * RACY_NANOSECONDS / 1e9)
    store = below(only_read(upstream.url), tmp_path)
    found = store.lookup(make_request())
    assert found is not None
    assert found.digest == there.digest
    assert sorted((tmp_path / "upstream").rglob("*")) == before
    assert list((tmp_path / "home").rglob("stamps/*.json")), "and it is not hashed twice"


def test_what_is_here_is_not_asked_for(upstream: ArtifactStore, tmp_path: Path) -> None:
    publish(upstream, make_request(), "theirs")
    store = below(upstream, tmp_path)
    mine = publish(store, make_request(), "mine")
    assert store.lookup(make_request()) == mine
    assert store.materialize(mine).joinpath("parts/a.txt").read_text() == "mine"


def test_a_station_that_publishes_does_not_look_upstream(
    upstream: ArtifactStore, tmp_path: Path
) -> None:
    publish(upstream, make_request(), "theirs")
    store = below(upstream, tmp_path)
    ref = store.publish(make_request(), fill(tmp_path / "made", "mine"), OUTPUT)
    assert ref.manifest == 1
    assert store.materialize(ref).joinpath("parts/a.txt").read_text() == "mine"


def test_damage_here_is_repaired_from_upstream(upstream: ArtifactStore, tmp_path: Path) -> None:
    publish(upstream, make_request())
    store = below(upstream, tmp_path)
    first = store.lookup(make_request())
    assert first is not None
    flip_byte(store, f"{attempt_path(store, first)}/model.bin", 3)
    again = store.lookup(make_request())
    assert again is not None
    assert (again.manifest, again.digest) == (2, first.digest)


@pytest.mark.parametrize("path", ["model.bin", "metrics.jsonl"])
def test_damage_upstream_is_a_miss(
    upstream: ArtifactStore, tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    there = publish(upstream, make_request())
    flip_byte(upstream, f"{attempt_path(upstream, there)}/{path}", 0)
    store = below(upstream, tmp_path)
    assert store.lookup(make_request()) is None
    assert manifest_names(store, make_request()) == []
    assert path in caplog.text


class Away(MemoryFiles):
    """A store elsewhere that nobody reaches."""

    def names(self, folder: str) -> Any:
        raise ConnectionError("nobody there")


def test_an_upstream_out_of_reach_is_a_miss_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = open_store("memory", tmp_path / "upstream")
    upstream.files = Away(f"memory://{uuid4().hex}")
    upstream._manifests.files = upstream.files
    assert below(upstream, tmp_path).lookup(make_request()) is None
    assert "was not taken from upstream" in caplog.text


@pytest.mark.s3
def test_a_bucket_can_be_upstream_of_a_folder(s3_url: str, tmp_path: Path) -> None:
    upstream = ArtifactStore(s3_url, cache_folder=tmp_path / "cache")
    there = publish(upstream, make_request())
    found = below(upstream, tmp_path).lookup(make_request())
    assert found is not None
    assert found.digest == there.digest
