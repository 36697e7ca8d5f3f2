"""Published shards in a run: one artifact each, fetched once, verified, and never lost again."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.parameters import check, parse_parameters, resolve
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.data.hub_shards import CLIMBMIX
from nanochat_core.data.recipes import HubSource
from nanochat_core.data.shards import ShardIndex, read_documents
from nanochat_core.data.source_notes import load_notes
from nanochat_core.errors import DataError
from tasks.listening import Listener, StageRecord, listening
from tests.data.hub_server import HubServer, corrupt, cut, digest_of, make_shards, slow

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

SET = "hf://datasets/some/climbmix"
SHARDS = make_shards(8)
NAMES = list(SHARDS)


class Recorder(Listener):
    def __init__(self) -> None:
        self.records: dict[str, StageRecord] = {}

    def ended(self, record: StageRecord) -> None:
        self.records[record.station] = record


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(page_size=3) as server:
        server.add(SHARDS)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def run(store: str, num_shards: int = 2, **values: Any) -> dict[str, StageRecord]:
    from flows.parameters import RunParameters
    from flows.running import run_line

    overrides = {"shards.num_shards": num_shards, **values.pop("overrides", {})}
    given = {"source": (SET,), "stop_after": "shards", **values}
    recorder = Recorder()
    with listening(recorder):
        run_line(RunParameters(preset="tiny", store=store, overrides=overrides, **given))
    return recorder.records


def folder_of(store: str, records: dict[str, StageRecord]) -> Path:
    ref = records["shards"].ref
    assert ref is not None
    return ArtifactStore(store).materialize(ref)


def kept(store: str) -> set[str]:
    opened = ArtifactStore(store)
    return {opened.manifest(ref).files[0].path for ref in opened.list("shard")}


def fetched(hub: HubServer) -> dict[str, int]:
    counts = {name: len(hub.requests(name)) for name in NAMES}
    return {name: count for name, count in counts.items() if count}


def test_shards_come_as_they_are_and_a_larger_run_fetches_only_new_ones(
    tmp_path: Path, hub: HubServer
) -> None:
    store = str(tmp_path / "store")
    hub.fault(NAMES[1], cut(1_000))
    records = run(store, 2)
    folder = folder_of(store, records)
    (note,) = load_notes(folder)
    assert (note.name, note.documents, note.held_out_documents) == ("climbmix", 120, 60)
    assert note.sample.startswith("Document 7.0: ")
    index = ShardIndex.load(folder)
    assert (index.train, index.validation) == ((NAMES[0], NAMES[1]), NAMES[7])
    assert index.documents == records["shards"].metrics["documents"] == 180
    names = (*index.train, index.validation)
    texts = [text for name in names for text in read_documents(folder / name)]
    assert index.characters == sum(map(len, texts))
    assert all((folder / name).read_bytes() == SHARDS[name] for name in names)
    assert fetched(hub) == {NAMES[0]: 1, NAMES[1]: 2, NAMES[7]: 1}
    larger = run(store, 4)
    assert ShardIndex.load(folder_of(store, larger)).train == tuple(NAMES[:4])
    assert fetched(hub) == {NAMES[0]: 1, NAMES[1]: 2, NAMES[2]: 1, NAMES[3]: 1, NAMES[7]: 1}
    assert run(store, 2)["shards"].state == "cached"
    stored = (Path(folder) / NAMES[0]).stat()
    assert stored.st_nlink > 1, "a shard lies on the disk once, whoever has it"


def test_text_goes_on_to_tokens(tmp_path: Path, hub: HubServer) -> None:
    changes = {"tokenizer.vocab_size": 300}
    records = run(str(tmp_path / "store"), stop_after="tokens", overrides=changes)
    assert records["tokens"].state == "made"
    assert int(records["tokens"].metrics["train_documents"]) == 120


def test_a_shard_that_is_corrupt_is_named_and_the_others_are_kept(
    tmp_path: Path, hub: HubServer
) -> None:
    store = str(tmp_path / "store")
    hub.fault(NAMES[1], corrupt())
    with pytest.raises(DataError, match=f"{NAMES[1]}.*sha256") as failure:
        run(store, 3)
    assert f"{SET}/{NAMES[1]}" in str(failure.value)
    assert NAMES[1] not in kept(store)
    hub.fault(NAMES[1])
    before = kept(store)
    asked = fetched(hub)
    run(store, 3)
    again = {name for name, count in fetched(hub).items() if count > asked.get(name, 0)}
    assert again == {*NAMES[:3], NAMES[7]} - before
    assert kept(store) == {*NAMES[:3], NAMES[7]}


def test_a_mirror_gives_what_the_hub_does_not(tmp_path: Path, hub: HubServer) -> None:
    hub.fault(NAMES[1], corrupt())
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / NAMES[1]).write_bytes(SHARDS[NAMES[1]])
    store = str(tmp_path / "store")
    assert run(store, mirrors=(str(folder),))["shards"].state == "made"
    assert kept(store) == {*NAMES[:2], NAMES[7]}


CHILD = """
import sys
from flows.parameters import RunParameters
from flows.running import run_line
run_line(RunParameters(preset="tiny", store=sys.argv[1], source=(sys.argv[2],),
                       stop_after="shards", overrides={"shards.num_shards": 3}))
"""


@pytest.mark.e2e
def test_a_killed_run_has_lost_no_shard_that_was_whole(tmp_path: Path, hub: HubServer) -> None:
    from prefect.settings import PREFECT_API_URL

    store = str(tmp_path / "store")
    hub.fault(NAMES[2], slow(chunk=1_000, pause=0.2))
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    command = [sys.executable, "-c", CHILD, store, SET]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as child:
        deadline = time.monotonic() + 60
        whole = {NAMES[0], NAMES[1], NAMES[7]}
        while kept(store) != whole and time.monotonic() < deadline:
            time.sleep(0.05)
        child.kill()
    assert kept(store) == whole
    hub.fault(NAMES[2])
    records = run(store, 3)
    assert records["shards"].state == "resumed"
    assert fetched(hub) == {**dict.fromkeys(sorted(whole), 1), NAMES[2]: 2}
    made = folder_of(store, records)
    assert all((made / name).read_bytes() == SHARDS[name] for name in (*whole, NAMES[2]))


def test_offline_takes_what_an_earlier_run_has_fetched(tmp_path: Path, hub: HubServer) -> None:
    store = str(tmp_path / "store")
    run(store, 3)
    asked = len(hub.asked)
    smaller = run(store, 2, offline=True)
    assert smaller["shards"].state == "made"
    assert ShardIndex.load(folder_of(store, smaller)).train == tuple(NAMES[:2])
    with pytest.raises(DataError, match=r"needs 4 train shards.* knows 3; .*num_shards=3"):
        run(store, 4, offline=True)
    assert len(hub.asked) == asked


def test_what_garbage_collection_took_is_found_in_the_shards_of_other_runs(
    tmp_path: Path, hub: HubServer
) -> None:
    store = str(tmp_path / "store")
    run(store, 3)
    shutil.rmtree(tmp_path / "store" / "shard")
    asked = len(hub.asked)
    assert run(store, 2, offline=True)["shards"].state == "made"
    assert len(hub.asked) == asked
    assert kept(store) == {*NAMES[:2], NAMES[7]}
    shutil.rmtree(tmp_path / "store" / "shard")
    opened = ArtifactStore(store)
    for ref in opened.list("shards"):
        path = opened.materialize(ref) / NAMES[1]
        path.chmod(0o644)
        path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"the store lacks . of its shards, {NAMES[0]}"):
        run(store, 3, offline=True)


def test_a_damaged_shard_is_fetched_again(tmp_path: Path, hub: HubServer) -> None:
    store = str(tmp_path / "store")
    run(store, 2)
    opened = ArtifactStore(store)
    (ref,) = [r for r in opened.list("shard") if opened.manifest(r).files[0].path == NAMES[0]]
    path = opened.materialize(ref) / NAMES[0]
    path.chmod(0o644)
    path.write_bytes(b"X" + path.read_bytes()[1:])
    larger = run(store, 3)
    assert fetched(hub)[NAMES[0]] == 2
    assert (folder_of(store, larger) / NAMES[0]).read_bytes() == SHARDS[NAMES[0]]


def test_a_store_elsewhere_holds_shards_too(hub: HubServer) -> None:
    check_elsewhere("memory://published-shards", hub)


@pytest.mark.s3
def test_a_bucket_holds_shards_too(hub: HubServer, s3_url: str) -> None:
    check_elsewhere(s3_url, hub)


def check_elsewhere(store: str, hub: HubServer) -> None:
    run(store, 2)
    larger = run(store, 3)
    assert set(fetched(hub).values()) == {1}
    opened = ArtifactStore(store)
    ref = larger["shards"].ref
    assert ref is not None
    files = {file.path: file.sha256 for file in opened.manifest(ref).files}
    assert files[NAMES[2]] == digest_of(NAMES[2], SHARDS[NAMES[2]]).sha256


def test_text_of_another_column_is_written_as_our_own(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        texts = [f"Text {number}.{i} of a set with holes." for i in range(50)]
        table = pa.table({"id": list(range(51)), "body": [*texts, None]})
        pq.write_table(table, folder / f"part-{number}.parquet")
    changes = {"shards.source.text_column": "body"}
    store = str(tmp_path / "store")
    records = run(store, source=(f"shards:{folder}",), overrides=changes)
    made = folder_of(store, records)
    assert records["shards"].metrics["documents"] == 150
    assert list(read_documents(made / "part-0.parquet"))[1] == "Text 0.1 of a set with holes."
    assert pq.read_schema(made / "part-2.parquet").names == ["text"]
    with pytest.raises(DataError, match=r"part-\d.parquet has no column 'text'; it has .*'body'"):
        run(str(tmp_path / "other"), source=(f"shards:{folder}",))


def test_a_mixture_reads_published_shards_and_own_text(tmp_path: Path, hub: HubServer) -> None:
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(f"Paragraph {i} of all, {i * i}. " * 40 for i in range(99)))
    store = str(tmp_path / "store")
    source = (f"{text}@50", f"{SET}@50")
    records = run(store, source=source)
    folder = folder_of(store, records)
    shares = [0, 0]
    for name in ShardIndex.load(folder).train:
        for document in read_documents(folder / name):
            shares[document.startswith("Document")] += len(document)
    assert shares[0] / sum(shares) == pytest.approx(0.5, abs=0.1)
    assert NAMES[7] in kept(store)


def test_a_mixture_of_published_shards_is_made_again_offline(
    tmp_path: Path, hub: HubServer
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(f"Paragraph {i} of all, {i * i}. " * 40 for i in range(99)))
    store = str(tmp_path / "store")
    run(store, source=(f"{text}@50", f"{SET}@50"))
    asked = len(hub.asked)
    assert run(store, source=(f"{text}@50", f"{SET}@50"), offline=True)["shards"].state == "cached"
    assert run(store, source=(f"{SET}@40", f"{text}@60"), offline=True)["shards"].state == "made"
    steps = {"pretrain.num_iterations": 3_000}
    with pytest.raises(DataError, match=r"the store knows \d; .* a smaller share or fewer steps"):
        run(store, source=(f"{text}@1", f"{SET}@99"), offline=True, overrides=steps)
    assert len(hub.asked) == asked


def test_the_token_is_shown_to_the_hub_and_written_nowhere(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.wants_token = "hf_secret-of-a-test"
    monkeypatch.setenv("HF_TOKEN", hub.wants_token)
    run(str(tmp_path / "store"))
    written = [
        path
        for place, _, names in os.walk(tmp_path / "store")
        for path in (Path(place) / name for name in names)
        if hub.wants_token.encode() in path.read_bytes()
    ]
    assert written == []


def test_a_speedrun_takes_the_first_shards_of_climbmix_and_the_last() -> None:
    names = [f"shard_{number:05d}.parquet" for number in range(6_543)]
    with HubServer() as server:
        server.add(dict.fromkeys(names, b"x"), repo=CLIMBMIX.removeprefix("hf://datasets/"))
        environ = {"HF_ENDPOINT": server.endpoint}
        found = resolve(parse_parameters({"preset": "speedrun", "store": "memory://"}), environ)
        assert len(server.asked) == 7, "pages of a thousand, and no other question"
    recipe = found.preset.recipes.shards
    assert isinstance(recipe.source, HubSource)
    assert [file.name for file in recipe.source.files] == [*names[:112], names[-1]]
    assert (recipe.num_shards, found.source_paths["shards"]) == (112, (CLIMBMIX,))


def test_a_hub_that_is_away_is_told_before_anything_starts(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with HubServer() as server:
        environ = {"HF_ENDPOINT": server.endpoint}
    with pytest.raises(DataError, match=f"list of files of {CLIMBMIX} could not be read: tried .*"):
        check(parse_parameters({"preset": "cpu", "store": str(store)}), environ)
    assert not store.exists()
