"""Publishing, looking up and naming artifacts, on a local folder and in memory."""

import json
import logging
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_tools import (
    OUTPUT,
    attempt_path,
    attempts,
    fill,
    make_request,
    manifest_names,
    open_store,
    publish,
    stored_bytes,
)

from nanochat_core.artifacts.location import default_store_url
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import (
    ArtifactNotFoundError,
    ConfigError,
    StoreError,
    StoreUnavailableError,
)


def test_what_was_published_is_found_and_read_back(store: ArtifactStore) -> None:
    request = make_request()
    assert store.lookup(request) is None
    lineage = ArtifactRef(station="tokens", fingerprint="1" * 64, digest="ab" * 32, manifest=1)
    ref = publish(
        store, request, input_refs={"tokens": lineage}, provenance={"host": "h", "at": Path("p")}
    )
    assert store.lookup(request) == ref
    assert (ref.station, ref.fingerprint, ref.manifest) == ("pretrain", request.fingerprint, 1)
    folder = store.materialize(ref)
    assert (folder / "model.bin").read_bytes() == b"hello" * 20
    assert (folder / "parts" / "a.txt").read_text() == "hello"
    manifest = store.manifest(ref)
    assert manifest.metrics == {"loss": 1.5, "steps": 3}
    assert manifest.provenance == {"ranks": 2, "host": "h", "at": "p"}
    assert manifest.input_refs == {"tokens": lineage}
    assert manifest.request == request
    assert [file.path for file in manifest.files] == ["metrics.jsonl", "model.bin", "parts/a.txt"]
    assert manifest.bytes == 100 + 5 + 3
    assert store.list() == [ref] == store.list("pretrain")
    assert store.list("sft") == []
    assert store.verify() == [] == store.verify(ref)


def test_another_store_object_and_another_recipe(store: ArtifactStore, tmp_path: Path) -> None:
    ref = publish(store, make_request())
    again = ArtifactStore(store.url, cache_folder=tmp_path / "other cache")
    assert again.lookup(make_request()) == ref
    assert again.lookup(make_request(depth=3)) is None


def test_record_files_do_not_change_the_digest(store: ArtifactStore, tmp_path: Path) -> None:
    request = make_request()
    first = store.publish(request, fill(tmp_path / "a", record="one\n"), OUTPUT)
    second = store.publish(request, fill(tmp_path / "b", record="two\n"), OUTPUT, replace=True)
    third = store.publish(request, fill(tmp_path / "c", text="other"), OUTPUT, replace=True)
    assert first.digest == second.digest != third.digest


def test_replace_takes_the_next_number_and_readers_follow(store: ArtifactStore) -> None:
    request = make_request()
    first = publish(store, request, "one")
    second = publish(store, request, "two", replace=True)
    assert (first.manifest, second.manifest) == (1, 2)
    assert store.lookup(request) == second == store.resolve(second.fingerprint[:6])
    assert (store.materialize(first) / "parts" / "a.txt").read_text() == "one"
    assert (store.materialize(second) / "parts" / "a.txt").read_text() == "two"


@pytest.mark.parametrize(
    ("text", "words"), [("hello", "digests agree"), ("other", "digests differ")]
)
def test_the_loser_adopts_the_winner_and_says_whether_digests_agree(
    store: ArtifactStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, words: str
) -> None:
    request = make_request()
    winner = publish(store, request, "hello")
    with caplog.at_level(logging.INFO):
        assert store.publish(request, fill(tmp_path / "late", text), OUTPUT) == winner
    assert words in caplog.text
    assert len(manifest_names(store, request)) == len(attempts(store, request)) == 1


def test_files_without_a_manifest_are_invisible(store: ArtifactStore) -> None:
    request = make_request()
    ref = publish(store, request)
    store.files.remove(f"{ref.station}/{ref.fingerprint}/manifest-000001.json")
    assert attempts(store, request) != []
    assert store.lookup(request) is None
    assert store.list() == []
    with pytest.raises(ArtifactNotFoundError, match="no manifest 1"):
        store.materialize(ref)
    assert publish(store, request).manifest == 1


def test_sixteen_racing_threads_publish_one_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    request = make_request()
    barrier = threading.Barrier(16, timeout=20)

    def race(index: int) -> ArtifactRef:
        folder = fill(tmp_path / str(index), record=f"{index}\n")
        barrier.wait()
        return store.publish(request, folder, OUTPUT)

    with ThreadPoolExecutor(16) as pool:
        refs = set(pool.map(race, range(16)))
    assert len(refs) == 1
    assert store.lookup(request) in refs
    assert manifest_names(store, request) == ["manifest-000001.json"]
    assert len(attempts(store, request)) == 1


RACER = """
    import sys, time
    from pathlib import Path
    from store_tools import OUTPUT, fill, make_request
    from nanochat_core.artifacts.store import ArtifactStore
    store, work, go = ArtifactStore(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    fill(work)
    print("ready", flush=True)
    while not go.exists():
        time.sleep(0.001)
    print(store.publish(make_request(), work, OUTPUT).model_dump_json(), flush=True)
"""


def start_script(script: str, *arguments: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_racing_processes_publish_one_artifact(tmp_path: Path) -> None:
    store, go = open_store("local", tmp_path), tmp_path / "go"
    racers = [start_script(RACER, store.url, str(tmp_path / n), str(go)) for n in "abc"]
    try:
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 3
        go.touch()
        answers = {racer.communicate(timeout=30)[0] for racer in racers}
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert [json.loads(answer)["manifest"] for answer in answers] == [1]
    assert len(manifest_names(store, make_request())) == 1


PUBLISHER = """
    import sys
    from pathlib import Path
    from store_tools import OUTPUT, fill, make_request
    from nanochat_core.artifacts.store import ArtifactStore
    store, work = ArtifactStore(sys.argv[1]), Path(sys.argv[2])
    print("ready", flush=True)
    for step in range(1_000_000):
        request = make_request(part=step % 3)
        folder = fill(store.generation(request), text=f"{step % 3}" * 1000)
        ref = store.publish(request, folder, OUTPUT, replace=step % 2 == 0)
        store.discard_generations(request)
        store.set_alias("latest", ref)
        store.save_run("run", {"step": step})
"""


@pytest.mark.e2e
def test_a_publisher_killed_anywhere_leaves_nothing_half_made(tmp_path: Path) -> None:
    store, moments = open_store("local", tmp_path), random.Random(0)
    for _ in range(6):
        publisher = start_script(PUBLISHER, store.url, str(tmp_path / "work"))
        try:
            assert publisher.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0.0, 0.3))
        finally:
            publisher.kill()
            publisher.communicate()
        assert store.verify() == []
        for ref in store.list():
            assert (store.materialize(ref) / "parts" / "a.txt").stat().st_size == 1000


def test_local_results_share_disk_blocks_and_records_do_not(
    local_store: ArtifactStore, tmp_path: Path
) -> None:
    work = fill(tmp_path / "work")
    folder = local_store.materialize(local_store.publish(make_request(), work, OUTPUT))
    assert (folder / "model.bin").samefile(work / "model.bin")
    with (work / "metrics.jsonl").open("a") as log_that_is_still_open:
        log_that_is_still_open.write("late line\n")
    assert local_store.lookup(make_request()) is not None


def test_a_link_in_the_output_is_published_as_the_file_it_names(
    store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "real").write_bytes(b"content")
    work = tmp_path / "work"
    work.mkdir()
    (work / "link").symlink_to(tmp_path / "real")
    ref = store.publish(make_request(), work, StageOutput(files={"link": "result"}))
    published = store.materialize(ref) / "link"
    assert published.read_bytes() == b"content"
    assert not published.is_symlink()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"missing.bin": "result"}, "is not in"),
        ({"../secret": "result"}, "outside its folder"),
        ({}, "made no files"),
    ],
)
def test_an_output_that_cannot_be_published_says_why(
    store: ArtifactStore, tmp_path: Path, files: dict[str, str], words: str
) -> None:
    (tmp_path / "secret").touch()
    with pytest.raises(StoreError, match=words):
        store.publish(make_request(), fill(tmp_path / "w"), StageOutput(files=files))
    assert attempts(store, make_request()) == []


DISK_LIMIT = """
    import resource, sys
    from pathlib import Path
    from store_tools import OUTPUT, fill, make_request
    from nanochat_core.artifacts.store import ArtifactStore
    from nanochat_core.errors import StoreUnavailableError
    store, work = ArtifactStore(sys.argv[1]), fill(Path(sys.argv[2]), record="x" * 100_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        store.publish(make_request(), work, OUTPUT)
    except StoreUnavailableError as error:
        print(error)
"""


def test_a_full_disk_while_publishing_leaves_nothing_visible(tmp_path: Path) -> None:
    store, work = open_store("local", tmp_path), tmp_path / "work"
    process = start_script(DISK_LIMIT, store.url, str(work))
    message = process.communicate(timeout=30)[0]
    assert "Could not write the files of pretrain/" in message
    assert "Free some space" in message
    assert manifest_names(store, make_request()) == attempts(store, make_request()) == []
    assert store.publish(make_request(), work, OUTPUT).manifest == 1


def test_aliases_move_and_say_whether_they_did(store: ArtifactStore) -> None:
    first, second = publish(store, make_request()), publish(store, make_request(depth=3))
    assert store.alias("latest") is None
    assert store.set_alias("latest", first)
    assert not store.set_alias("latest", first)
    assert store.set_alias("latest", second)
    assert store.alias("latest") == store.resolve("latest") == second
    assert store.aliases() == {"latest": second}
    nowhere = second.model_copy(update={"manifest": 9})
    with pytest.raises(ArtifactNotFoundError, match="no manifest 9"):
        store.set_alias("latest", nowhere)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 101])
def test_names_that_are_no_file_names_are_refused(store: ArtifactStore, name: str) -> None:
    ref = publish(store, make_request())
    with pytest.raises(ConfigError, match="alias name"):
        store.set_alias(name, ref)
    with pytest.raises(ConfigError, match="run name"):
        store.save_run(name, {})
    with pytest.raises(ArtifactNotFoundError):
        store.resolve(name)


def test_resolving_by_fingerprint(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactNotFoundError, match=r"is empty\. Run a preset first"):
        store.resolve("latest")
    first, second = publish(store, make_request()), publish(store, make_request(depth=3))
    store.set_alias("demo", first)
    for name in (first.short, first.fingerprint, first.fingerprint[:6], "demo"):
        assert store.resolve(name) == first
    assert store.resolve(second.short) == second
    for name in ("nothing", first.fingerprint[:5], "sft/" + first.fingerprint[:8]):
        with pytest.raises(ArtifactNotFoundError, match=r"Aliases: demo\. Artifacts: pretrain/"):
            store.resolve(name)


def test_an_ambiguous_prefix_lists_its_candidates(store: ArtifactStore) -> None:
    by_letter: dict[str, Request] = {}
    for depth in range(17):
        request = make_request(depth=depth)
        other = by_letter.setdefault(request.fingerprint[0], request)
        if other is not request:
            break
    for one in (request, other):
        publish(store, one)
    with pytest.raises(ArtifactNotFoundError, match="Give more characters") as error:
        store.resolve(f"pretrain/{request.fingerprint[0]}")
    assert request.fingerprint[:16] in str(error.value)
    assert other.fingerprint[:16] in str(error.value)


def test_run_records_are_replaced_and_listed(store: ArtifactStore) -> None:
    assert store.runs() == {}
    store.save_run("2026-a", {"stages": {}, "folder": Path("x")})
    store.save_run("2026-a", {"stages": {"shards": "cached"}})
    store.save_run("2026-b", {})
    assert store.runs() == {"2026-a": {"stages": {"shards": "cached"}}, "2026-b": {}}


def test_a_manifest_is_one_line_of_json_with_everything_asked(store: ArtifactStore) -> None:
    ref = publish(store, make_request())
    text = json.loads(stored_bytes(store, f"pretrain/{ref.fingerprint}/manifest-000001.json"))
    assert text["format"] == text["number"] == text["code_version"] == 1
    assert text["recipe"] == {"depth": 2}
    assert text["inputs"] == {"tokens": "ab" * 32}
    assert text["attempt"] == attempt_path(store, ref).rsplit("/", 1)[-1]


def test_a_store_that_is_a_file_or_full_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreUnavailableError, match="is a file"):
            ArtifactStore(str(place)).check_writable()
    store = open_store("local", tmp_path)
    store.check_writable()
    with pytest.raises(StoreUnavailableError, match="MB left, expected"):
        store.check_writable(min_free_bytes=10**18)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_store_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o555)
    with pytest.raises(StoreUnavailableError, match="Make it writable"):
        open_store("local", tmp_path).check_writable()


def test_a_store_in_memory_is_writable(memory_store: ArtifactStore) -> None:
    memory_store.check_writable()


@pytest.mark.parametrize("url", ["", "  ", "nosuch://x", "zip::file://x", "s3://key:secret@b/x"])
def test_addresses_that_name_no_store_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="store URL"):
        ArtifactStore(url)


def test_the_default_place_of_the_store() -> None:
    both = {"NANOCHAT_STORE": "s3://bucket/x", "NANOCHAT_BASE_DIR": "/base"}
    assert default_store_url(both) == "s3://bucket/x"
    assert default_store_url({"NANOCHAT_STORE": "", "NANOCHAT_BASE_DIR": "/base"}) == "/base"
    assert Path(default_store_url({})).is_absolute()
