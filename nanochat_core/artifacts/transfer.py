"""From store to store: every byte is verified on arrival, and what is there already is skipped.

The source is only read. In the target a copy is published as anything else: files first, into a
folder of their own, then the manifest under the next free number. A copy that was cut off is
taken up again where it stopped.
"""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from nanochat_core.artifacts.ancestry import Ancestry
from nanochat_core.artifacts.canonical import canonical_json, sha256_hex
from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.listing import listed
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.threads import in_threads
from nanochat_core.artifacts.translate import reading, writing
from nanochat_core.artifacts.types import ArtifactRef, FileRecord, Manifest
from nanochat_core.errors import DamagedFileError, StoreError

if TYPE_CHECKING:  # the store itself copies from the one above it
    from nanochat_core.artifacts.store import ArtifactStore

log = logging.getLogger(__name__)

COPY_LOCK = "-copy"
"""After the station, in the name of the lock of a copy under way."""
COPY_MARK = "-copy-"
"""In the names of folders that are being filled from another store, which their lock protects."""

Copied = Callable[[int], None]
"""Told of every file that is in the target, with its bytes, by whichever thread brought it."""


def copy_artifact(
    source: "ArtifactStore",
    target: "ArtifactStore",
    manifest: Manifest,
    *,
    copied: Copied = lambda _: None,
) -> ArtifactRef:
    """Publish in `target` what `manifest` describes in `source`; returns its reference there.

    Metrics, provenance and date stay; the number is the next free one, and inputs that are there
    under other numbers are named by those. What is there with the same digest, and sound, is
    returned as it is. One process at a time copies an artifact, others wait. Raises
    DamagedFileError, with nothing visible, when a file does not arrive as its manifest says.
    """
    place = (manifest.station, manifest.fingerprint)
    with target.lock(f"{manifest.station}{COPY_LOCK}", manifest.fingerprint, wait=True) as lease:
        there = equal_there(target, manifest)
        if there is not None:
            copied(manifest.bytes)
            return there
        manifests = Manifests(target.files)
        attempt = _attempt(manifests, manifest)
        _Copying(source.files, target.files, manifest, attempt, copied).run()
        here = with_inputs_there(target, manifest).model_copy(update={"attempt": attempt})
        while True:
            # Somebody who makes the same artifact right now may take the number.
            number = max(manifests.numbers(*place), default=0) + 1
            here = here.model_copy(update={"number": number})
            lease.check()
            if manifests.create(here):
                return here.ref


def equal_there(target: "ArtifactStore", manifest: Manifest) -> ArtifactRef | None:
    """What `target` has of the same fingerprint and digest, every byte of it sound."""
    for found in Ancestry(Manifests(target.files)).valid((manifest.station, manifest.fingerprint)):
        if found.digest == manifest.digest and not target.verify(found.ref):
            return found.ref
    return None


def with_inputs_there(target: "ArtifactStore", manifest: Manifest) -> Manifest:
    """`manifest` with its inputs named as `target` names them, where it has them."""
    ancestry = Ancestry(Manifests(target.files))
    refs = {}
    for name, ref in manifest.input_refs.items():
        found = ancestry.find(ref)
        refs[name] = ref if found is None else found.ref
    return manifest.model_copy(update={"input_refs": refs})


def _attempt(manifests: Manifests, manifest: Manifest) -> str:
    """The folder of a copy of the same bytes that was cut off, else a new one."""
    files = sorted((file.path, file.sha256) for file in manifest.files)
    ending = f"{COPY_MARK}{sha256_hex(canonical_json(files))[:8]}"
    place = (manifest.station, manifest.fingerprint)
    with reading(f"the artifact {manifest.ref.short}"):
        left = [name for name in manifests.files.names("/".join(place)) if name.endswith(ending)]
    numbers = manifests.numbers(*place) if left else ()
    named = set()
    for number in numbers:
        try:
            named.add(manifests.read(*place, number).attempt)
        except DamagedFileError:
            named |= set(left)  # it may have named any of them
    unnamed = [name for name in left if name not in named]
    return max(unnamed, default=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:12]}{ending}")


class _Copying:
    """The files of one artifact on their way into one folder of the target."""

    def __init__(
        self, source: Files, target: Files, manifest: Manifest, attempt: str, copied: Copied
    ) -> None:
        self.source, self.target, self.manifest = source, target, manifest
        place = f"{manifest.station}/{manifest.fingerprint}"
        self._from, self._to = f"{place}/{manifest.attempt}", f"{place}/{attempt}"
        self._copied = copied
        self._there: dict[str, int] = {}

    def run(self) -> None:
        """Bring every file; bytes that are not those of the manifest leave nothing behind."""
        self._there = {file.path: file.bytes for file in listed(self.target, self._to)}
        wanted = {file.path.split("/")[0] for file in self.manifest.files}
        with writing(f"the files of {self.manifest.ref.short}"):
            for name in {path.split("/")[0] for path in self._there} - wanted:
                self.target.remove(f"{self._to}/{name}")
        try:
            num_threads = max(self.source.num_threads, self.target.num_threads)
            in_threads(self._bring, self.manifest.files, num_threads)
        except DamagedFileError:
            with suppress(OSError):
                self.target.remove(self._to)
            raise
        with writing(f"the files of {self.manifest.ref.short}"):
            self.target.settle(self._to)

    def _bring(self, file: FileRecord) -> None:
        if not self._is_there(file):
            with self._on_this_machine(file) as (path, is_ours):
                # Two stores never share the blocks of a file: what harms one must not harm both.
                self._put(path, file, share=is_ours or self.target.local_path("") is None)
        self._copied(file.bytes)

    def _is_there(self, file: FileRecord) -> bool:
        """Whether an earlier try has brought it; what it left half is removed."""
        if file.path not in self._there:
            return False
        path = f"{self._to}/{file.path}"
        with reading(f"the file {path}"):
            is_sound = self._there[file.path] == file.bytes and (
                self.target.sha256(path) == file.sha256
            )
        if not is_sound:
            with writing(f"the file {path}"):
                self.target.remove(path)
        return is_sound

    @contextmanager
    def _on_this_machine(self, file: FileRecord) -> Iterator[tuple[Path, bool]]:
        """A local file with the bytes of `file`, and whether it is ours alone."""
        path = f"{self._from}/{file.path}"
        local = self.source.local_path(path)
        if local is not None:
            with reading(f"the file {path} of the source"):
                num_bytes = local.stat().st_size
            self._check(file, num_bytes == file.bytes, f"{num_bytes:,} bytes")
            yield local, False
            return
        # On the disk of the target, where there is room; left-overs are removed with the attempt.
        folder = self.target.local_path(self._to)
        with writing(f"the files of {self.manifest.ref.short}"):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-")
        with scratch as name:
            arrived = Path(name) / "file"
            with reading(f"the file {path} of the source"):
                sha256 = self.source.fetch(path, arrived)
            self._check(file, sha256 == file.sha256, f"the sha256 {sha256[:12]}…")
            yield arrived, True

    def _put(self, path: Path, file: FileRecord, *, share: bool) -> None:
        target = f"{self._to}/{file.path}"
        with writing(f"the file {target}"):
            sha256 = self.target.put(path, target, share=share)
            num_bytes = self.target.size(target)
        self._check(file, sha256 == file.sha256, f"the sha256 {sha256[:12]}…")
        self._check(file, num_bytes == file.bytes, f"{num_bytes:,} bytes")

    def _check(self, file: FileRecord, is_sound: bool, actual: str) -> None:
        if not is_sound:
            raise DamagedFileError(
                f"{file.path} of {self.manifest.ref.short} has {actual} on arrival, its manifest "
                f"says {file.bytes:,} bytes, sha256 {file.sha256[:12]}…. Nothing of it was made "
                "visible; look at the source with: nanochat artifacts verify"
            )


@dataclass(frozen=True)
class Transfer:
    """What is to be copied, what was made first before the rest, and what is there already."""

    source: "ArtifactStore"
    target: "ArtifactStore"
    artifacts: tuple[Manifest, ...]
    there: tuple[ArtifactRef, ...]
    missing: tuple[ArtifactRef, ...]
    """Inputs that the source has no more."""

    @property
    def bytes(self) -> int:
        """Size of what is to be copied."""
        return sum(manifest.bytes for manifest in self.artifacts)

    def run(self, copied: Copied = lambda _: None) -> list[ArtifactRef]:
        """Copy; a lock makes `copied` safe to be called from all threads."""
        lock = threading.Lock()

        def locked(num_bytes: int) -> None:
            with lock:
                copied(num_bytes)

        return [
            copy_artifact(self.source, self.target, manifest, copied=locked)
            for manifest in self.artifacts
        ]


def plan_transfer(
    source: "ArtifactStore",
    target: "ArtifactStore",
    refs: Iterable[ArtifactRef],
    *,
    with_lineage: bool = True,
    replace: bool = False,
) -> Transfer:
    """What bringing `refs`, with all that they were made from, means for `target`.

    Raises StoreError, before anything is copied, where the target has something else under the
    same fingerprint, unless `replace`: what is copied then gets the next number there, which
    readers prefer.
    """
    ancestry = Ancestry(Manifests(source.files))
    if with_lineage:
        wanted = ancestry.closure(refs)
    else:
        wanted = [found for found in map(ancestry.find, refs) if found is not None]
    there, artifacts = [], []
    for manifest in wanted:
        found = _found(target, manifest, replace)
        if found is None:
            artifacts.append(manifest)
        else:
            there.append(found)
    return Transfer(source, target, tuple(artifacts), tuple(there), tuple(ancestry.missing))


def _found(target: "ArtifactStore", manifest: Manifest, replace: bool) -> ArtifactRef | None:
    newest = target.lookup(manifest.request)
    if newest is None or newest.digest == manifest.digest:
        return newest
    there = equal_there(target, manifest)
    if there is None and not replace:
        raise StoreError(
            f"{newest.short} in {target.url} holds something else: its digest is "
            f"{newest.digest[:12]}…, here it is {manifest.digest[:12]}…. With --replace it is put "
            "beside that, and found instead of it from then on."
        )
    return there


def carry_aliases(transfer: Transfer, names: Iterable[str]) -> list[str]:
    """Let those aliases of the source name in the target what they name in the source.

    Returns the aliases that were moved.
    """
    there = Ancestry(Manifests(transfer.target.files))
    moved = []
    for name in names:
        ref = transfer.source.alias(name)
        found = None if ref is None else there.find(ref)
        if found is not None and transfer.target.set_alias(name, found.ref):
            moved.append(name)
    return moved
