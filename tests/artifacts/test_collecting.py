"""Collecting what nobody needs: what is kept, and what goes."""

import json
import os
import time
from pathlib import Path

import pytest
from collecting_tools import NOTHING_BUT_ALIASES, assert_whole, collect, kinds
from family_tools import DAY, age, digests, make, make_family, record_of, request_of
from store_tools import flip_byte, open_store

from nanochat_core.artifacts.collecting import Keeping, plan_collection
from nanochat_core.artifacts.records import Manifests, manifest_path
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.sweeping import sweep
from nanochat_core.artifacts.transfer import plan_transfer
from nanochat_core.artifacts.types import SCORE_STATION
from nanochat_core.artifacts.unfinished import being_made
from nanochat_core.errors import ArtifactNotFoundError, DamagedFileError


def test_what_an_alias_names_is_kept_with_all_that_it_was_made_from(
    store: ArtifactStore, tmp_path: Path
) -> None:
    kept = make_family(store, tmp_path / "made")
    doomed = make_family(store, tmp_path / "made", seed=1)
    store.set_alias("latest", kept["sft"])
    collection = collect(store)
    assert kinds(collection) == ["artifact"] * 5
    assert set(digests(store)) == {(ref.station, ref.fingerprint) for ref in kept.values()}
    for ref in doomed.values():
        assert store.files.names(f"{ref.station}/{ref.fingerprint}") == ()
    assert_whole(store)
    assert collect(store).removals == ()


def test_scores_stay_as_long_as_the_model_that_they_are_about(local_store: ArtifactStore) -> None:
    scratch = Path(local_store.url).parent / "made"
    kept, doomed = (make_family(local_store, scratch, seed=seed) for seed in (0, 1))
    local_store.set_alias("latest", kept["sft"])
    of_kept = make(local_store, SCORE_STATION, scratch, pretrain=kept["pretrain"])
    make(local_store, SCORE_STATION, scratch, pretrain=doomed["pretrain"])
    collect(local_store)
    assert list(local_store.list(SCORE_STATION)) == [of_kept]
    assert_whole(local_store)


def test_an_old_artifact_goes_only_when_nothing_kept_needs_it(local_store: ArtifactStore) -> None:
    scratch = Path(local_store.url).parent / "made"
    shards = make(local_store, "shards", scratch)
    other = make(local_store, "shards", scratch, seed=1)
    age(local_store, 30)
    overdate(local_store, days=30)
    young = make(local_store, "tokenizer", scratch, shards=shards)
    collection = collect(local_store, Keeping(runs=0, young_seconds=7 * DAY))
    assert [removal.place for removal in collection.removals] == [("shards", other.fingerprint)]
    assert local_store.lookup(request_of("tokenizer", shards=shards)) == young
    assert_whole(local_store)


def overdate(store: ArtifactStore, days: float) -> None:
    """Write other dates into all manifests, as if they were made so long ago."""
    from datetime import UTC, datetime, timedelta

    from nanochat_core.artifacts.sealed import seal

    created = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
    manifests = Manifests(store.files)
    for place in manifests.artifacts():
        for number in manifests.numbers(*place):
            path = manifest_path(*place, number)
            body = manifests.read(*place, number).model_dump(mode="json")
            local = store.files.local_path(path)
            state = local.stat()
            local.write_bytes(seal({**body, "created": created}))
            os.utime(local, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_the_newest_runs_and_named_artifacts_are_kept(store: ArtifactStore, tmp_path: Path) -> None:
    first, second, third, named = (
        make(store, "shards", tmp_path / "made", seed=seed) for seed in range(4)
    )
    store.save_run("20260101-000000-aaaaaa", record_of(first))
    store.save_run("20260102-000000-aaaaaa", record_of(second))
    store.save_run("20260103-000000-aaaaaa", record_of(third))
    name = f"shards/{named.fingerprint[:10]}"
    collection = collect(store, Keeping(runs=2, young_seconds=0, names=(name,)))
    assert [removal.place[1] for removal in collection.removals] == [first.fingerprint]
    assert set(store.runs()) == {f"2026010{day}-000000-aaaaaa" for day in (1, 2, 3)}
    with pytest.raises(ArtifactNotFoundError):
        plan_collection(store, Keeping(names=("nobody",)))


def test_while_an_alias_is_damaged_nothing_is_collected(
    store: ArtifactStore, tmp_path: Path
) -> None:
    store.set_alias("latest", make(store, "shards", tmp_path / "made"))
    flip_byte(store, "aliases/latest.json", 30)
    with pytest.raises(DamagedFileError, match="aliases/latest"):
        plan_collection(store, NOTHING_BUT_ALIASES)


def test_a_dry_run_changes_nothing(local_store: ArtifactStore) -> None:
    make_family(local_store, Path(local_store.url).parent / "made")
    leave_everything(local_store)
    root = Path(local_store.url)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*")}
    assert being_made(local_store) == []
    collection = plan_collection(local_store, NOTHING_BUT_ALIASES)
    assert {"artifact", "leftover", "in progress"} <= set(kinds(collection))
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*")} == before


def leave_everything(store: ArtifactStore) -> list[str]:
    """Left-overs of all kinds beside a kept artifact, all of them old; their paths."""
    ref = make(store, "shards", Path(store.url).parent / "left", seed=77)
    place = f"shards/{ref.fingerprint}"
    store.set_alias("kept", ref)
    paths = [
        f"{place}/20260101T000000-0123456789ab",
        f"{place}/20260101T000000-0123456789ab-copy-01234567",
        f"{place}/.tmp-0123",
        f"tokens/{'0' * 64}/20260101T000000-0123456789ab",
    ]
    for path in paths:
        is_file = path.endswith(".tmp-0123")
        store.files.write(path if is_file else f"{path}/data.bin", b"left")
    work = store.generation(request_of("tokens", seed=5))
    (work / "work").mkdir()
    (work / "work" / "model.bin").write_bytes(b"half")
    age(store, 3)
    return [*paths, str(work.relative_to(store.url))]


def test_what_killed_uploads_and_runs_left_goes_after_a_day(local_store: ArtifactStore) -> None:
    paths = leave_everything(local_store)
    fresh = f"{paths[0][:-4]}ffff"
    local_store.files.write(f"{fresh}/data.bin", b"on its way")
    collection = collect(local_store)
    assert kinds(collection) == ["in progress", *["leftover"] * 4]
    for path in paths:
        assert not local_store.files.local_path(path).exists()
    assert not local_store.files.local_path(f"tokens/{'0' * 64}").exists()
    assert local_store.files.names(fresh) == ("data.bin",)
    assert_whole(local_store)


def test_unfinished_work_is_kept_as_long_as_artifacts_are(local_store: ArtifactStore) -> None:
    *_, work = leave_everything(local_store)
    collect(local_store, Keeping(young_seconds=4 * DAY))
    assert local_store.files.local_path(work).exists()
    collect(local_store, Keeping(young_seconds=2 * DAY))
    assert not local_store.files.local_path(work).exists()


def test_work_that_went_on_since_it_was_found_stays(local_store: ArtifactStore) -> None:
    *_, work = leave_everything(local_store)
    collection = plan_collection(local_store, NOTHING_BUT_ALIASES)
    local_store.files.write(f"{work}/made/more.bin", b"more")
    stayed: list[str] = []
    sweep(local_store, collection, lambda one, why: stayed.append(why))
    assert stayed.count("it was worked on since it was found") == 1
    assert local_store.files.local_path(work).exists()


def test_the_inputs_of_unfinished_work_are_kept(local_store: ArtifactStore) -> None:
    scratch = Path(local_store.url).parent / "made"
    family = make_family(local_store, scratch)
    folder = local_store.materialize(family["tokens"])
    work = local_store.generation(request_of("pretrain", seed=5, tokens=family["tokens"])) / "work"
    work.mkdir()
    (work / "job.json").write_text(json.dumps({"inputs": {"tokens": str(folder)}}))
    collect(local_store)
    assert {ref.station for ref in local_store.list()} == {"shards", "tokenizer", "tokens"}
    (work / "job.json").write_text('{"inputs": {"tokens": 3}')
    collect(local_store)
    assert local_store.list() == []


def test_what_is_being_made_is_left_alone_and_whole_artifacts_stay(
    local_store: ArtifactStore,
) -> None:
    paths = leave_everything(local_store)
    other = make(local_store, "shards", Path(local_store.url).parent / "made", seed=8)
    place = paths[0].split("/")[:2]
    with local_store.lock(*place):
        (busy,) = being_made(local_store)
        assert f"process {os.getpid()}" in busy
        collection = plan_collection(local_store, NOTHING_BUT_ALIASES, busy=[busy])
        assert "artifact" not in kinds(collection)
        stayed = {}
        sweep(local_store, collection, lambda one, why: stayed.__setitem__(one.paths, why))
        for path in paths[:3]:
            assert "is being made right now" in stayed[(path,)]
            assert local_store.files.local_path(path).exists()
        for path in paths[3:]:
            assert stayed[(path,)] == ""
        # Even if asked to: whoever makes it holds its lock.
        collection = plan_collection(local_store, NOTHING_BUT_ALIASES)
        assert [one.place for one in collection.removals if one.kind == "artifact"] == [
            ("shards", other.fingerprint)
        ]
    assert being_made(local_store) == []


def test_a_copy_on_its_way_is_left_alone(
    local_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ArtifactStore(str(tmp_path / "source"))
    ref = make(source, "shards", tmp_path / "made")
    put, seen = local_store.files.put, []

    def put_while_collecting(path: Path, target: str, *, share: bool) -> str:
        age(local_store, 3)
        collection = plan_collection(local_store, NOTHING_BUT_ALIASES)
        sweep(local_store, collection, lambda one, why: seen.append(why))
        return put(path, target, share=share)

    monkeypatch.setattr(local_store.files, "put", put_while_collecting)
    plan_transfer(source, local_store, [ref]).run()
    assert any("is being made right now" in why for why in seen)
    assert local_store.verify() == []
    assert digests(local_store) == digests(source)


def test_an_alias_set_meanwhile_stops_the_collection(store: ArtifactStore, tmp_path: Path) -> None:
    family = make_family(store, tmp_path / "made")
    collection = plan_collection(store, NOTHING_BUT_ALIASES)
    store.set_alias("saved", family["sft"])
    stayed: list[str] = []
    assert sweep(store, collection, lambda one, why: stayed.append(why)) == 0
    assert set(stayed) == {"names or runs have changed since it was found; collect again"}
    assert len(store.list()) == 5


def test_what_was_published_again_meanwhile_stays(store: ArtifactStore, tmp_path: Path) -> None:
    make(store, "shards", tmp_path / "made")
    collection = plan_collection(store, NOTHING_BUT_ALIASES)
    make(store, "shards", tmp_path / "made", replace=True)
    stayed: list[str] = []
    sweep(store, collection, lambda one, why: stayed.append(why))
    assert stayed == ["it was published again since it was found"]
    assert store.verify() == []


def test_superseded_manifests_go_and_the_one_that_counts_stays(
    store: ArtifactStore, tmp_path: Path
) -> None:
    for _ in range(3):
        last = make(store, "shards", tmp_path / "made", replace=True)
    flip_byte(store, manifest_path("shards", last.fingerprint, 1), 30)
    store.set_alias("latest", last)
    collection = collect(store)
    reasons = {removal.name.split()[-1]: removal.reason for removal in collection.removals}
    assert reasons == {
        "1": "damaged, and made anew since",
        "2": "nothing that is kept needs it",
    }
    assert store.verify() == []
    assert store.resolve("latest") == last
    assert Manifests(store.files).numbers("shards", last.fingerprint) == (3,)


def test_a_damaged_manifest_that_was_not_made_anew_stays_while_something_needs_it(
    local_store: ArtifactStore,
) -> None:
    scratch = Path(local_store.url).parent / "made"
    family = make_family(local_store, scratch)
    local_store.set_alias("latest", family["sft"])
    lonely = make(local_store, "shards", scratch, seed=3)
    for ref in (family["shards"], lonely):
        flip_byte(local_store, manifest_path("shards", ref.fingerprint, 1), 30)
    age(local_store, 3)
    collection = collect(local_store)
    assert [one.place[1] for one in collection.removals] == [lonely.fingerprint]
    assert any("is not there" in note for note in collection.notes)
    assert len(local_store.files.names(f"shards/{family['shards'].fingerprint}")) == 2


def test_copies_on_this_machine_go_when_they_were_not_used_for_long(tmp_path: Path) -> None:
    store = open_store("memory", tmp_path)
    family = make_family(store, tmp_path / "made")
    store.set_alias("latest", family["sft"])
    used, unused = store.materialize(family["sft"]), store.materialize(family["shards"])
    os.utime(unused, (time.time() - 3 * DAY,) * 2)
    collection = collect(store)
    assert [removal.folder for removal in collection.removals] == [unused]
    assert used.exists()
    assert not unused.exists()
    assert (store.materialize(family["shards"]) / "data.bin").exists()


@pytest.mark.s3
def test_in_a_bucket_the_same_goes_and_the_same_stays(s3_url: str, tmp_path: Path) -> None:
    store = ArtifactStore(s3_url, cache_folder=tmp_path / "cache", lease_seconds=1.0)
    kept = make_family(store, tmp_path / "made")
    make(store, "shards", tmp_path / "made", seed=1)
    store.set_alias("latest", kept["sft"])
    place = f"shards/{kept['shards'].fingerprint}"
    store.files.write(f"{place}/20260101T000000-0123456789ab/data.bin", b"on its way")
    assert being_made(store) == []
    assert kinds(collect(store)) == ["artifact"]
    assert_whole(store)
    assert len(store.files.names(place)) == 3, "an upload of today is left alone"


@pytest.mark.s3
def test_a_lease_of_another_host_keeps_what_it_is_for(s3_url: str, tmp_path: Path) -> None:
    here = ArtifactStore(s3_url, cache_folder=tmp_path / "here", lease_seconds=2.0)
    there = ArtifactStore(s3_url, cache_folder=tmp_path / "there", lease_seconds=2.0)
    ref = make(here, "shards", tmp_path / "made")
    with there.lock("shards", ref.fingerprint):
        (busy,) = being_made(here)
        assert busy.startswith("shards is being made right now by process")
        collection = plan_collection(here, NOTHING_BUT_ALIASES)
        stayed: list[str] = []
        sweep(here, collection, lambda one, why: stayed.append(why))
        assert len(stayed) == 1
        assert "is being made right now" in stayed[0]
    assert being_made(here) == []
    assert kinds(collect(here)) == ["artifact"]
