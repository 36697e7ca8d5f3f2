"""What the tests of the store share."""

import os
from pathlib import Path
from uuid import uuid4

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput

KINDS = ("local", "memory")
OUTPUT = StageOutput(
    files={"model.bin": "result", "parts/a.txt": "result", "metrics.jsonl": "record"},
    metrics={"loss": 1.5, "steps": 3},
    provenance={"ranks": 2},
)


def open_store(kind: str, folder: Path) -> ArtifactStore:
    """An empty store of one kind whose local parts lie below `folder`."""
    url = str(folder / "store") if kind == "local" else f"memory://{uuid4().hex}"
    return ArtifactStore(url, cache_folder=folder / "cache")


def make_request(**recipe: object) -> Request:
    """A request of station `pretrain`."""
    inputs = {"tokens": "ab" * 32}
    return Request(station="pretrain", code_version=1, recipe={"depth": 2, **recipe}, inputs=inputs)


def fill(folder: Path, text: str = "hello", record: str = "{}\n") -> Path:
    """Write the files of OUTPUT."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(text.encode() * 20)
    (folder / "parts" / "a.txt").write_text(text, encoding="utf-8")
    (folder / "metrics.jsonl").write_text(record, encoding="utf-8")
    return folder


def publish(store: ArtifactStore, request: Request, text: str = "hello", **options) -> ArtifactRef:
    """Work in an in-progress folder and publish it, as a stage does."""
    folder = fill(store.generation(request, fresh=True), text)
    ref = store.publish(request, folder, OUTPUT, **options)
    store.discard_generations(request)
    return ref


def stored_bytes(store: ArtifactStore, path: str) -> bytes:
    """What a file of the store holds."""
    return store.files.read(path)


def overwrite(store: ArtifactStore, path: str, data: bytes) -> None:
    """Change a file behind the back of the store; a local one keeps its modification time."""
    local = store.files.local_path(path)
    if local is None:
        store.files.write(path, data)
        return
    before = local.stat()
    with local.open("r+b") as file:
        file.write(data)
        file.truncate()
    os.utime(local, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip_byte(store: ArtifactStore, path: str, position: int) -> None:
    """Invert one byte of a file of the store."""
    data = bytearray(stored_bytes(store, path))
    data[position] ^= 0xFF
    overwrite(store, path, bytes(data))


def attempt_path(store: ArtifactStore, ref: ArtifactRef) -> str:
    """Folder of the files of an artifact, relative to the store."""
    return f"{ref.station}/{ref.fingerprint}/{store.manifest(ref).attempt}"


def manifest_names(store: ArtifactStore, request: Request) -> list[str]:
    """Manifest files of a request."""
    names = store.files.names(f"{request.station}/{request.fingerprint}")
    return [name for name in names if name.startswith("manifest-")]


def attempts(store: ArtifactStore, request: Request) -> list[str]:
    """Attempt folders of a request."""
    names = store.files.names(f"{request.station}/{request.fingerprint}")
    return [name for name in names if not name.startswith("manifest-")]
