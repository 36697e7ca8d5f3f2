"""Thousands of artifacts and runs in a local store, written at once as publishing writes them."""

import os
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nanochat_core.artifacts.canonical import sha256_hex
from nanochat_core.artifacts.records import Manifests, Runs, manifest_path
from nanochat_core.artifacts.sealed import seal
from nanochat_core.artifacts.types import (
    FORMAT,
    ArtifactRef,
    FileRecord,
    Manifest,
    Request,
    result_digest,
)

STATIONS = ("shards", "tokenizer", "tokens", "pretrain", "sft")
CONTENT = b"x" * 64


def write_artifacts(store: Path, num: int, *, days: float = 1.0) -> list[ArtifactRef]:
    """Lines of five stations, each made from the one before, made one after the other.

    Without fsync and hard links, which is what publishing one takes its time for; the test beside
    this compares the bytes.
    """
    start = datetime.now(UTC) - timedelta(days=days)
    refs: list[ArtifactRef] = []
    for i in range(num):
        before = {} if i % 5 == 0 else {STATIONS[i % 5 - 1]: refs[-1]}
        made = start + timedelta(seconds=i * days * 86_000 / num)
        manifest = manifest_of(STATIONS[i % 5], i, before, made)
        folder = store / manifest.station / manifest.fingerprint
        (folder / manifest.attempt).mkdir(parents=True)
        (folder / manifest.attempt / "data.bin").write_bytes(CONTENT)
        path = store / manifest_path(manifest.station, manifest.fingerprint, 1)
        path.write_bytes(seal(manifest.model_dump(mode="json")))
        for changed in (path, folder):
            os.utime(changed, (made.timestamp(),) * 2)
        refs.append(manifest.ref)
    return refs


def manifest_of(
    station: str, seed: int, inputs: dict[str, ArtifactRef], made: datetime
) -> Manifest:
    """What is known about one of them."""
    request = Request(
        station=station,
        code_version=1,
        recipe={"seed": seed, "depth": 2, "text": "a recipe has some twenty fields " * 10},
        inputs={name: ref.digest for name, ref in inputs.items()},
    )
    files = (FileRecord(path="data.bin", role="result", bytes=64, sha256=sha256_hex(CONTENT)),)
    return Manifest(
        number=1,
        station=station,
        fingerprint=request.fingerprint,
        code_version=1,
        recipe=request.recipe,
        inputs=request.inputs,
        input_refs=inputs,
        attempt=f"{made:%Y%m%dT%H%M%S}-{random.Random(seed).randbytes(6).hex()}",
        files=files,
        metrics={"loss": 1.5},
        provenance={"seconds": 3.5, "run": "some run"},
        digest=result_digest(files),
        created=made.isoformat(timespec="seconds"),
    )


def write_runs(store: Path, refs: list[ArtifactRef]) -> None:
    """A record of a run for each line of five artifacts."""
    folder = store / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    start = datetime.now(UTC) - timedelta(days=1)
    for i in range(0, len(refs), 5):
        run_id = f"{start + timedelta(seconds=i):%Y%m%d-%H%M%S}-{i:06x}"
        stations = {
            ref.station: {"state": "made", "seconds": 1.0, "ref": ref.model_dump(mode="json")}
            for ref in refs[i : i + 5]
        }
        record = {"run": run_id, "state": "completed", "stations": stations}
        body = {"format": FORMAT, "name": run_id, "record": record}
        (folder / f"{run_id}.json").write_bytes(seal(body))


class Reads:
    """Counts manifests and run records that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.manifests = self.runs = 0
        for owner, name in ((Manifests, "manifests"), (Runs, "runs")):
            monkeypatch.setattr(owner, "read", self._counted(owner.read, name))

    def _counted(self, read: Callable, name: str) -> Callable:
        def counted(*arguments: object) -> object:
            setattr(self, name, getattr(self, name) + 1)
            return read(*arguments)

        return counted
