"""A store with thousands of artifacts answers as fast as one with ten."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from many_tools import CONTENT, Reads, manifest_of, write_artifacts, write_runs

from flows.looking import artifact_lines
from nanochat_core.artifacts.newest import newest_manifests, newest_runs
from nanochat_core.artifacts.records import Aliases, Manifests, manifest_path
from nanochat_core.artifacts.resolving import resolve_name
from nanochat_core.artifacts.sealed import unseal
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ArtifactNotFoundError

ROUNDS = 5


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """A store with 70 artifacts and 14 runs."""
    refs = write_artifacts(tmp_path / "store", 70)
    write_runs(tmp_path / "store", refs)
    return ArtifactStore(str(tmp_path / "store"))


def test_what_is_written_at_once_is_what_publishing_writes(tmp_path: Path) -> None:
    (ref,) = write_artifacts(tmp_path / "fast", 1)
    fast, real = ArtifactStore(str(tmp_path / "fast")), ArtifactStore(str(tmp_path / "real"))
    manifest = fast.manifest(ref)
    (tmp_path / "data.bin").write_bytes(CONTENT)
    output = StageOutput(files={"data.bin": "result"}, metrics=manifest.metrics)
    made = real.publish(manifest.request, tmp_path, output, provenance=manifest.provenance)
    assert made == ref
    path = manifest_path(ref.station, ref.fingerprint, 1)
    bodies = [unseal(one.files.read(path), path) for one in (fast, real)]
    changing = {"attempt", "created"}
    fast_body, real_body = ({k: v for k, v in b.items() if k not in changing} for b in bodies)
    assert fast_body == real_body
    assert fast.verify() == []
    assert fast.lookup(manifest.request) == ref


def test_the_newest_are_listed_and_only_they_are_read(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = store.list()
    reads = Reads(monkeypatch)
    assert [m.ref for m in newest_manifests(store, limit=7)] == expected[-7:]
    assert reads.manifests == 7
    assert [m.ref for m in newest_manifests(store)] == expected
    of_sft = [ref for ref in expected if ref.station == "sft"]
    assert [m.ref for m in newest_manifests(store, "sft", 3)] == of_sft[-3:]
    assert newest_manifests(store, "rl", 3) == []


def test_a_repaired_artifact_is_as_new_as_its_newest_manifest(store: ArtifactStore) -> None:
    oldest = store.list()[0]
    manifest = store.manifest(oldest)
    again = manifest.model_copy(update={"number": 2})
    assert Manifests(store.files).create(again)
    assert again.ref in [m.ref for m in newest_manifests(store, limit=1)]


def test_the_newest_runs_are_found_by_their_names(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(store.runs().items())
    reads = Reads(monkeypatch)
    assert list(newest_runs(store, 3).items()) == expected[-3:]
    assert reads.runs == 3
    path = store.files.local_path(f"runs/{expected[-1][0]}.json")
    path.write_text("{}")
    assert list(newest_runs(store, 3).items()) == expected[-4:-1]


def test_a_name_or_a_typo_costs_no_more_than_what_is_said(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = store.list()[20]
    store.set_alias("latest", ref)
    reads = Reads(monkeypatch)
    assert store.resolve("latest") == ref
    assert reads.manifests == 0
    assert store.resolve(f"{ref.station}/{ref.fingerprint[:12]}") == ref
    assert reads.manifests == 1
    with pytest.raises(ArtifactNotFoundError, match="Aliases: latest"):
        store.resolve("lastest")
    assert reads.manifests == 1
    starts = [ref.fingerprint[0] for ref in store.list("sft")]
    start = max(starts, key=starts.count)
    reads.manifests = 0
    many = f"stands for {starts.count(start)} artifacts"
    with pytest.raises(ArtifactNotFoundError, match=many):
        store.resolve(f"sft/{start}")
    assert reads.manifests == starts.count(start) > 1


def test_of_thousands_with_the_same_beginning_a_dozen_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crowd(Manifests):
        def artifacts(self, station: str | None = None) -> tuple[tuple[str, str], ...]:
            return super().artifacts(station) * 100

    write_artifacts(tmp_path / "store", 10)
    store = ArtifactStore(str(tmp_path / "store"))
    manifests, aliases = Crowd(store.files), Aliases(store.files)
    start = store.list("sft")[0].fingerprint[0]
    reads = Reads(monkeypatch)
    with pytest.raises(ArtifactNotFoundError, match=r"stands for 12 or more of [12]00 art"):
        resolve_name(f"sft/{start}", aliases, manifests, store.url)
    assert reads.manifests == 12


def test_the_table_says_when_it_is_not_all(store: ArtifactStore) -> None:
    title, *lines, last = artifact_lines(store, "", 50)
    assert title.startswith("artifact ")
    assert len(lines) == 50
    assert last == "the newest 50 are listed; all of them: --limit 0"
    assert len(artifact_lines(store, "", 0)) == 71
    assert len(artifact_lines(store, "sft", 14)) == 15


def test_in_a_store_elsewhere_the_newest_are_found_by_one_listing_a_station(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uuid import uuid4

    url = f"memory://{uuid4().hex}"
    check_elsewhere(ArtifactStore(url, cache_folder=tmp_path / "cache"), tmp_path, monkeypatch)


@pytest.mark.s3
def test_in_a_bucket_the_newest_are_found_by_one_listing_a_station(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_elsewhere(ArtifactStore(s3_url, cache_folder=tmp_path / "cache"), tmp_path, monkeypatch)


def check_elsewhere(store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of three, with one read and no listing of single artifacts."""
    from datetime import UTC, datetime

    (tmp_path / "data.bin").write_bytes(CONTENT)
    refs = []
    for seed in range(3):
        manifest = manifest_of("sft", seed, {}, datetime.now(UTC))
        refs.append(
            store.publish(manifest.request, tmp_path, StageOutput(files={"data.bin": "result"}))
        )
        time.sleep(1.01 if store.url.startswith("s3:") else 0.01)  # as fine as S3 tells times
    reads, listings = Reads(monkeypatch), []
    names = store.files.names

    def counted(folder: str) -> tuple[str, ...]:
        listings.append(folder)
        return names(folder)

    monkeypatch.setattr(store.files, "names", counted)
    assert [m.ref for m in newest_manifests(store, limit=1)] == refs[-1:]
    assert reads.manifests == 1
    assert listings == [""]


COMMANDS = {
    "ls": ("artifacts", "ls", "--limit", "50"),
    "ls sft": ("artifacts", "ls", "sft", "--limit", "50"),
    "show": ("artifacts", "show", "latest"),
    "typo": ("artifacts", "show", "lastest"),
    "fingerprint": ("artifacts", "show", "sft/"),
    "plan": ("plan", "tiny"),
}


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_with_ten_thousand_artifacts_commands_take_at_most_three_times_as_long(
    tmp_path: Path,
) -> None:
    stores = {}
    for num in (10, 10_000):
        folder = tmp_path / str(num)
        refs = write_artifacts(folder, num)
        write_runs(folder, refs)
        store = ArtifactStore(str(folder))
        store.set_alias("latest", refs[-1])
        stores[num] = (str(folder), refs[-1])
    ratios = {}
    for name, arguments in COMMANDS.items():
        times = {num: [] for num in stores}
        for _ in range(ROUNDS):
            for num, (folder, ref) in stores.items():
                given = [f"{a}{ref.fingerprint[:8]}" if a.endswith("/") else a for a in arguments]
                times[num].append(seconds_of([*given, "--store", folder]))
        small, large = (min(times[num]) for num in stores)
        ratios[name] = large / small
        print(f"{name}: {small:.3f} s with 10, {large:.3f} s with 10,000")  # noqa: T201
    assert max(ratios.values()) <= 3, ratios


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_with_ten_thousand_artifacts_a_cached_run_takes_at_most_three_times_as_long(
    tmp_path: Path,
) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    home = {"PREFECT_HOME": str(tmp_path / "prefect")}
    seconds_of(["run", "tiny", "--store", str(few)], **home)
    shutil.copytree(few, many)
    write_runs(many, write_artifacts(many, 10_000))
    times = {store: [] for store in (few, many)}
    for _ in range(3):
        for store in times:
            times[store].append(seconds_of(["run", "tiny", "--store", str(store)], **home))
    small, large = (min(times[store]) for store in times)
    print(f"cached run: {small:.3f} s with 10, {large:.3f} s with 10,000")  # noqa: T201
    assert large / small <= 3


def seconds_of(arguments: list[str], **environ: str) -> float:
    """How long a whole command takes."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
    start = time.perf_counter()
    done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
    # A name that is not there is an error, and none other is expected.
    assert done.returncode == 0 or "lastest" in arguments, done.stdout + done.stderr
    return time.perf_counter() - start
