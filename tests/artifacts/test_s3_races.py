"""Sixteen processes that publish the same artifact at the same moment: one wins, all adopt it."""

from pathlib import Path

import pytest
from s3_server import S3Server
from s3_tools import other_host, place_on, start_racers
from store_tools import make_request, manifest_names, open_store

from nanochat_core.artifacts.store import ArtifactStore

NUM_RACERS = 16


@pytest.fixture
def s3_place(s3_server: S3Server) -> str:
    """A store URL on a real S3 server, where nothing is yet."""
    return place_on(s3_server)


def one_winner_each(store: ArtifactStore, folder: Path, num_rounds: int) -> None:
    lines = start_racers(store.url, folder, num_racers=NUM_RACERS, num_rounds=num_rounds)
    answers: dict[str, list[str]] = {}
    for line in lines:
        step, rest = line.split(" ", 1)
        answers.setdefault(step, []).append(rest)
    assert sorted(map(int, answers)) == list(range(num_rounds))
    for step, given in answers.items():
        assert len(given) == NUM_RACERS
        assert len(set(given)) == 1, "they name different artifacts"
        manifest, attempt = given[0].split()
        request = make_request(round=int(step))
        assert (manifest, manifest_names(store, request)) == ("1", ["manifest-000001.json"])
        stored = store.files.infos(f"pretrain/{request.fingerprint}")
        assert {path.split("/")[0] for path in stored if "/" in path} == {attempt}
        ref = store.lookup(request)
        assert ref is not None
        assert (store.materialize(ref) / "parts" / "a.txt").read_text(encoding="utf-8") == "hello"
    assert store.verify() == []


@pytest.mark.e2e
def test_sixteen_processes_publish_one_artifact_in_a_folder(tmp_path: Path) -> None:
    one_winner_each(open_store("local", tmp_path), tmp_path, num_rounds=3)


@pytest.mark.s3
def test_sixteen_processes_publish_one_artifact_in_a_bucket(s3_place: str, tmp_path: Path) -> None:
    one_winner_each(other_host(s3_place, tmp_path), tmp_path, num_rounds=3)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_twenty_rounds_of_sixteen_processes_in_a_folder(tmp_path: Path) -> None:
    one_winner_each(open_store("local", tmp_path), tmp_path, num_rounds=20)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.s3
def test_twenty_rounds_of_sixteen_processes_in_a_bucket(s3_place: str, tmp_path: Path) -> None:
    one_winner_each(other_host(s3_place, tmp_path), tmp_path, num_rounds=20)
