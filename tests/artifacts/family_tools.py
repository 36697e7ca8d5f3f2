"""A small line of artifacts, each made from others, for tests of lineage; what a store lists."""

import json
import os
import random
import time
from pathlib import Path

from nanochat_core.artifacts.listing import listed
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput

DAY = 24 * 3600


def make(
    store: ArtifactStore,
    station: str,
    scratch: Path,
    *,
    size: int = 2000,
    seed: int = 0,
    replace: bool = False,
    **inputs: ArtifactRef,
) -> ArtifactRef:
    """Publish an artifact of a few files whose content depends on station and seed."""
    folder = scratch / f"{station}-{seed}-{random.randrange(1 << 30)}"
    (folder / "parts").mkdir(parents=True)
    source = random.Random(f"{station} {seed}")
    (folder / "data.bin").write_bytes(source.randbytes(size))
    (folder / "parts" / "more.bin").write_bytes(source.randbytes(size // 2))
    (folder / "metrics.jsonl").write_text(json.dumps({"seed": seed}) + "\n")
    request = request_of(station, seed, **inputs)
    output = StageOutput(
        files={"data.bin": "result", "parts/more.bin": "result", "metrics.jsonl": "record"},
        metrics={"loss": seed + 0.5},
    )
    return store.publish(
        request, folder, output, input_refs=inputs, provenance={"run": "r"}, replace=replace
    )


def request_of(station: str, seed: int = 0, **inputs: ArtifactRef) -> Request:
    """What `make` is asked for."""
    return Request(
        station=station,
        code_version=1,
        recipe={"seed": seed},
        inputs={name: ref.digest for name, ref in inputs.items()},
    )


def make_family(store: ArtifactStore, scratch: Path, seed: int = 0, size: int = 2000):
    """shards -> tokenizer -> tokens -> pretrain -> sft, by station."""
    options = {"seed": seed, "size": size}
    shards = make(store, "shards", scratch, **options)
    words = make(store, "tokenizer", scratch, **options, shards=shards)
    tokens = make(store, "tokens", scratch, **options, shards=shards, tokenizer=words)
    base = make(store, "pretrain", scratch, **options, tokens=tokens, tokenizer=words)
    chat = make(store, "sft", scratch, **options, pretrain=base, tokenizer=words)
    return {ref.station: ref for ref in (shards, words, tokens, base, chat)}


def record_of(*refs: ArtifactRef) -> dict[str, object]:
    """As much of the record of a run as names artifacts."""
    stations = {ref.station: {"ref": ref.model_dump(mode="json")} for ref in refs}
    return {"stations": stations}


def age(store: ArtifactStore, days: float) -> None:
    """Let everything in a local store look as if it was made some days ago."""
    root = store.files.local_path("")
    assert root is not None
    then = time.time() - days * DAY
    for path in root.rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)


def everything(store: ArtifactStore) -> dict[str, int]:
    """Every file of a store with its size, but for what this host keeps in it."""
    root = store.files.local_path("")
    return {
        file.path: file.bytes
        for file in listed(store.files, "")
        if not file.path.startswith(("cache/", "locks"))
        and not (root is not None and (root / file.path).is_dir())
    }


def digests(store: ArtifactStore) -> dict[tuple[str, str], str]:
    """Station and fingerprint of every artifact, and what came out."""
    return {(ref.station, ref.fingerprint): ref.digest for ref in store.list()}
