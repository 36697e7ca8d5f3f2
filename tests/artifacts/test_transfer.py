"""Artifacts go from store to store with their lineage, verified, skipped where they are."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from family_tools import digests, everything, make, make_family, request_of
from store_tools import flip_byte, open_store

from nanochat_core.artifacts.records import manifest_path
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.transfer import carry_aliases, copy_artifact, plan_transfer
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.errors import DamagedFileError, StationBusyError, StoreError


@pytest.fixture
def source(tmp_path: Path) -> ArtifactStore:
    """A local store to copy from."""
    return ArtifactStore(str(tmp_path / "source"), cache_folder=tmp_path / "source-cache")


def bring(source: ArtifactStore, target: ArtifactStore, ref: ArtifactRef, **options) -> list:
    return plan_transfer(source, target, [ref], **options).run()


def path_of(store: ArtifactStore, ref: ArtifactRef, name: str) -> str:
    return f"{ref.station}/{ref.fingerprint}/{store.manifest(ref).attempt}/{name}"


def test_an_artifact_arrives_with_its_lineage_metrics_and_provenance(
    source: ArtifactStore, store: ArtifactStore, tmp_path: Path
) -> None:
    family = make_family(source, tmp_path / "made")
    before = everything(source)
    made = bring(source, store, family["sft"])
    assert [ref.station for ref in made] == ["shards", "tokenizer", "tokens", "pretrain", "sft"]
    assert digests(store) == digests(source)
    assert store.verify() == []
    for ref in family.values():
        here, there = source.manifest(ref), store.manifest(ref)
        same = {"number", "attempt"}
        assert there.model_dump(exclude=same) == here.model_dump(exclude=same)
        assert store.lookup(here.request) == there.ref
    assert everything(source) == before, "the source was written"


def test_what_is_there_is_skipped(
    source: ArtifactStore, store: ArtifactStore, tmp_path: Path
) -> None:
    family = make_family(source, tmp_path / "made")
    bring(source, store, family["tokens"])
    before = everything(store)
    plan = plan_transfer(source, store, [family["tokens"]])
    assert plan.artifacts == ()
    assert plan.run() == []
    rest = plan_transfer(source, store, [family["sft"]])
    assert [manifest.station for manifest in rest.artifacts] == ["pretrain", "sft"]
    assert everything(store) == before
    counted: list[int] = []
    rest.run(counted.append)
    assert sum(counted) == rest.bytes > 0


def test_alone_it_comes_without_what_it_was_made_from(
    source: ArtifactStore, store: ArtifactStore, tmp_path: Path
) -> None:
    family = make_family(source, tmp_path / "made")
    (ref,) = bring(source, store, family["sft"], with_lineage=False)
    assert [one.station for one in store.list()] == ["sft"]
    assert store.manifest(ref).input_refs == source.manifest(family["sft"]).input_refs


@pytest.mark.parametrize("name", ["data.bin", "parts/more.bin", "metrics.jsonl"])
def test_a_bit_flipped_in_the_source_is_refused_with_nothing_visible(
    source: ArtifactStore, store: ArtifactStore, tmp_path: Path, name: str
) -> None:
    ref = make(source, "shards", tmp_path / "made")
    flip_byte(source, path_of(source, ref, name), 3)
    with pytest.raises(DamagedFileError, match=f"{name} of shards/.* on arrival"):
        bring(source, store, ref)
    assert store.list() == []
    assert everything(store) == {}


def test_a_bit_flipped_on_the_way_is_refused_with_nothing_visible(
    source: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a store elsewhere, whose answer is not what it holds."""
    elsewhere = open_store("memory", tmp_path)
    ref = make(elsewhere, "shards", tmp_path / "made")
    fetch = elsewhere.files.fetch

    def fetch_badly(path: str, target: Path, *args: object) -> str:
        fetch(path, target)
        data = bytearray(target.read_bytes())
        data[1] ^= 0x10
        target.write_bytes(data)
        from nanochat_core.artifacts.filesystems import hash_file

        return hash_file(target)

    monkeypatch.setattr(elsewhere.files, "fetch", fetch_badly)
    with pytest.raises(DamagedFileError, match="on arrival"):
        bring(elsewhere, source, ref)
    assert everything(source) == {}


def test_a_missing_or_cut_file_of_the_source_is_refused(
    source: ArtifactStore, store: ArtifactStore, tmp_path: Path
) -> None:
    ref = make(source, "shards", tmp_path / "made")
    local = source.files.local_path(path_of(source, ref, "data.bin"))
    local.write_bytes(local.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match="1,999 bytes on arrival"):
        bring(source, store, ref)
    local.unlink()
    with pytest.raises(DamagedFileError, match=r"data\.bin of the source"):
        bring(source, store, ref)
    assert everything(store) == {}


def test_two_stores_share_no_blocks_of_a_file(source: ArtifactStore, tmp_path: Path) -> None:
    target = open_store("local", tmp_path)
    ref = make(source, "shards", tmp_path / "made")
    (there,) = bring(source, target, ref)
    flip_byte(target, path_of(target, there, "data.bin"), 3)
    assert source.verify() == []


def test_a_copy_that_was_cut_off_is_taken_up_where_it_stopped(
    source: ArtifactStore, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = make(source, "shards", tmp_path / "made")
    put, calls = store.files.put, []

    def put_two(path: Path, target: str, *, share: bool) -> str:
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return put(path, target, share=share)

    monkeypatch.setattr(store.files, "put", put_two)
    with pytest.raises(KeyboardInterrupt):
        bring(source, store, ref)
    assert store.list() == []
    assert len(everything(store)) == 2
    bring(source, store, ref)
    assert len(calls) == 4, "what had arrived was sent again"
    assert store.verify() == []
    assert len(store.files.names(f"shards/{ref.fingerprint}")) == 2


def test_what_a_cut_off_copy_left_half_or_beside_is_not_taken(
    source: ArtifactStore, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = make(source, "shards", tmp_path / "made")
    with monkeypatch.context() as patched:

        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(store.files, "settle", fail)
        with pytest.raises(KeyboardInterrupt):
            bring(source, store, ref)
    (attempt,) = store.files.names(f"shards/{ref.fingerprint}")
    folder = f"shards/{ref.fingerprint}/{attempt}"
    store.files.write(f"{folder}/data.bin", b"half")
    flip_byte(store, f"{folder}/parts/more.bin", 5)
    store.files.write(f"{folder}/.tmp-1/file", b"left")
    (there,) = bring(source, store, ref)
    assert store.verify() == []
    assert store.manifest(there).attempt == attempt
    assert set(store.files.names(folder)) == {"data.bin", "parts", "metrics.jsonl"}


def test_what_is_damaged_there_is_brought_again_under_the_next_number(
    source: ArtifactStore, store: ArtifactStore, tmp_path: Path
) -> None:
    ref = make(source, "shards", tmp_path / "made")
    (first,) = bring(source, store, ref)
    flip_byte(store, path_of(store, first, "data.bin"), 3)
    (again,) = bring(source, store, ref)
    assert (again.manifest, again.digest) == (2, ref.digest)
    assert store.lookup(request_of("shards")) == again
    flip_byte(store, manifest_path("shards", ref.fingerprint, 2), 30)
    (third,) = bring(source, store, ref)
    assert (third.manifest, third.digest) == (3, ref.digest)


def test_something_else_under_the_same_fingerprint_is_never_replaced_unasked(
    source: ArtifactStore, store: ArtifactStore, tmp_path: Path
) -> None:
    shards = make(source, "shards", tmp_path / "made")
    words = make(source, "tokenizer", tmp_path / "made", shards=shards)
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "data.bin").write_bytes(b"other")
    from nanochat_core.config.job import StageOutput

    output = StageOutput(files={"data.bin": "result"})
    theirs = store.publish(request_of("shards"), folder, output)
    before = everything(store)
    with pytest.raises(StoreError, match=r"holds something else.*--replace"):
        plan_transfer(source, store, [words])
    assert everything(store) == before
    bring(source, store, words, replace=True)
    here = store.lookup(request_of("shards"))
    assert (here.manifest, here.digest) == (2, shards.digest)
    copied = store.manifest(store.lookup(source.manifest(words).request))
    assert copied.input_refs["shards"] == here, "an input is named by its number here"
    assert store.manifest(theirs).digest == theirs.digest
    assert plan_transfer(source, store, [words]).artifacts == ()


def test_an_input_that_the_source_has_no_more_is_said(
    source: ArtifactStore, store: ArtifactStore, tmp_path: Path
) -> None:
    family = make_family(source, tmp_path / "made")
    source.files.remove(f"shards/{family['shards'].fingerprint}")
    plan = plan_transfer(source, store, [family["tokens"]])
    assert set(plan.missing) == {family["shards"]}
    plan.run()
    assert {ref.station for ref in store.list()} == {"tokenizer", "tokens"}


def test_aliases_come_along_when_asked_for(
    source: ArtifactStore, store: ArtifactStore, tmp_path: Path
) -> None:
    family = make_family(source, tmp_path / "made")
    source.set_alias("latest", family["sft"])
    source.set_alias("other", make(source, "sft", tmp_path / "made", seed=9))
    plan = plan_transfer(source, store, [family["sft"]])
    plan.run()
    assert store.aliases() == {}
    assert carry_aliases(plan, ["latest", "other", "none"]) == ["latest"]
    assert carry_aliases(plan, ["latest"]) == []
    assert store.resolve("latest").digest == family["sft"].digest


def test_one_process_at_a_time_copies_an_artifact(source: ArtifactStore, tmp_path: Path) -> None:
    target = open_store("local", tmp_path)
    ref = make(source, "shards", tmp_path / "made")
    script = (
        "import sys; from nanochat_core.artifacts.store import ArtifactStore as S;"
        "from nanochat_core.artifacts.transfer import copy_artifact;"
        "a, b = S(sys.argv[1]), S(sys.argv[2]);"
        "print(copy_artifact(a, b, a.manifest(a.list()[0])).manifest)"
    )
    arguments = [sys.executable, "-c", script, source.url, target.url]
    racers = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    numbers = [racer.communicate()[0].strip() for racer in racers]
    assert numbers == ["1", "1", "1"]
    assert len(target.files.names(f"shards/{ref.fingerprint}")) == 2
    assert target.verify() == []


def test_a_maker_at_work_does_not_stop_a_copy_and_adopts_it(
    source: ArtifactStore, tmp_path: Path
) -> None:
    target = open_store("local", tmp_path)
    ref = make(source, "shards", tmp_path / "made")
    with target.lock("shards", ref.fingerprint):
        there = copy_artifact(source, target, source.manifest(ref))
        with pytest.raises(StationBusyError), target.lock("shards", ref.fingerprint):
            pass
        assert make(target, "shards", tmp_path / "made") == there
    target.clear_leftovers(request_of("shards"))
    assert target.verify() == []


def killed_pushes(source: ArtifactStore, url: str, environ: dict[str, str], rounds: int) -> int:
    """Push the alias `latest`, killed at random moments, and once more; how many kills hit it."""
    script = (
        "import sys; from nanochat_core.artifacts.store import ArtifactStore as S;"
        "from nanochat_core.artifacts.transfer import plan_transfer;"
        "a, b = S(sys.argv[1]), S(sys.argv[2]); b.check_writable(); print('begun', flush=True);"
        "plan_transfer(a, b, [a.resolve('latest')]).run()"
    )
    command = [sys.executable, "-c", script, source.url, url]
    moments, kills = random.Random(1), 0
    for _ in range(rounds):
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        try:
            process.wait(moments.uniform(0.05, 1.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        process.stdout.close()
    subprocess.run(command, env=environ, check=True, timeout=60)
    return kills


@pytest.mark.s3
def test_what_was_pushed_to_s3_and_pulled_back_is_equal_byte_by_byte(
    source: ArtifactStore, s3_url: str, tmp_path: Path
) -> None:
    family = make_family(source, tmp_path / "made", size=300_000)
    there = ArtifactStore(s3_url, cache_folder=tmp_path / "there")
    bring(source, there, family["sft"])
    assert digests(there) == digests(source)
    assert there.verify() == []
    back = open_store("local", tmp_path)
    bring(there, back, family["sft"])
    assert digests(back) == digests(source)
    assert back.verify() == []
    for ref in family.values():
        folders = (source.materialize(ref), back.materialize(ref))
        contents = [
            {p.relative_to(f).as_posix(): p.read_bytes() for p in f.rglob("*") if p.is_file()}
            for f in folders
        ]
        assert contents[0] == contents[1]


@pytest.mark.s3
def test_a_bit_flipped_in_a_bucket_is_refused_on_the_way_here(
    s3_url: str, source: ArtifactStore, tmp_path: Path
) -> None:
    there = ArtifactStore(s3_url, cache_folder=tmp_path / "there")
    ref = make(there, "shards", tmp_path / "made")
    flip_byte(there, path_of(there, ref, "data.bin"), 700)
    with pytest.raises(DamagedFileError, match=r"data\.bin of shards/.* on arrival"):
        bring(there, source, ref)
    assert everything(source) == {}


@pytest.mark.s3
def test_a_push_that_is_killed_again_and_again_completes(
    source: ArtifactStore, s3_url: str, tmp_path: Path
) -> None:
    family = make_family(source, tmp_path / "made", size=3_000_000)
    source.set_alias("latest", family["sft"])
    environ = {**os.environ, "HOME": str(tmp_path / uuid4().hex)}
    assert killed_pushes(source, s3_url, environ, rounds=3) > 0
    there = ArtifactStore(s3_url, cache_folder=tmp_path / "there")
    assert digests(there) == digests(source)
    assert there.verify() == []
