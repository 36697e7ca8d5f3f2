"""Making an artifact visible: bytes first, manifest last, and never over another."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from nanochat_core.artifacts.canonical import with_stable_form
from nanochat_core.artifacts.filesystems import FileInfo, Files
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.stamps import Stamps
from nanochat_core.artifacts.threads import in_threads, without_patience
from nanochat_core.artifacts.translate import writing
from nanochat_core.artifacts.types import (
    ArtifactRef,
    FileRecord,
    Manifest,
    Request,
    check_relative_path,
    result_digest,
)
from nanochat_core.config.job import Role, StageOutput
from nanochat_core.errors import DamagedFileError, StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publisher:
    """Publishes into one store; `find` returns the verified artifact of a request, if any."""

    files: Files
    manifests: Manifests
    find: Callable[[Request], ArtifactRef | None]
    stamps: Stamps

    def publish(
        self,
        request: Request,
        folder: Path,
        output: StageOutput,
        *,
        input_refs: Mapping[str, ArtifactRef],
        provenance: Mapping[str, Any],
        replace: bool,
    ) -> ArtifactRef:
        """See `ArtifactStore.publish`."""
        attempt = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:12]}"
        uploaded = self._upload(request, folder, output.files, attempt)
        draft = Manifest(
            number=1,
            station=request.station,
            fingerprint=request.fingerprint,
            code_version=request.code_version,
            recipe=request.recipe,
            inputs=request.inputs,
            input_refs=dict(input_refs),
            attempt=attempt,
            files=uploaded,
            metrics=output.metrics,
            provenance=with_stable_form({**output.provenance, **provenance}),
            digest=result_digest(uploaded),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return self._number(request, draft, replace)

    def _upload(
        self, request: Request, folder: Path, roles: Mapping[str, Role], attempt: str
    ) -> tuple[FileRecord, ...]:
        """Store every file under the attempt; a failure leaves nothing behind."""
        sources = {path: _source(folder, path, request) for path in sorted(roles)}
        if not sources:
            raise StoreError(f"{request.short} made no files; a station must name at least one.")
        target = _attempt_path(request, attempt)
        try:
            with writing(f"the files of {request.short}"):
                records = self._store(sources, target, roles)
                self.files.settle(target)
        except BaseException:
            self._discard(target)
            raise
        return records

    def _store(
        self, sources: Mapping[str, Path], target: str, roles: Mapping[str, Role]
    ) -> tuple[FileRecord, ...]:
        """Store the files, then look at what is there."""

        def put(path: str) -> str:
            # Records (logs, metrics) may still be open for appending, so they never share the disk
            # blocks of the in-progress file.
            return self.files.put(sources[path], f"{target}/{path}", share=roles[path] == "result")

        sha256s = in_threads(put, list(sources), self.files.num_threads)
        infos, records = self.files.infos(target), []
        for (path, source), sha256 in zip(sources.items(), sha256s, strict=True):
            stored, given = infos.get(path), source.stat().st_size
            if stored is None or (roles[path] == "result" and stored.size != given):
                num_stored = "nothing" if stored is None else f"{stored.size:,} bytes"
                raise DamagedFileError(
                    f"{path} changed while it was published: {given:,} bytes given, {num_stored} "
                    "stored. Run again; the station must have finished writing it."
                )
            self._remember(f"{target}/{path}", stored, sha256)
            records.append(
                FileRecord(path=path, role=roles[path], bytes=stored.size, sha256=sha256)
            )
        return tuple(records)

    def _remember(self, path: str, info: FileInfo, sha256: str) -> None:
        """What was just sent need not be read to be known; a file on a disk may change still."""
        if self.files.local_path(path) is None:
            self.stamps.remember(f"{self.files.url}/{path}", info, sha256)

    def _number(self, request: Request, draft: Manifest, replace: bool) -> ArtifactRef:
        """Write the next free manifest number, or adopt what another maker has published."""
        while True:
            # Listed before the search: whoever publishes in between takes the number we try.
            taken = self.manifests.numbers(request.station, request.fingerprint)
            winner = None if replace else self.find(request)
            if winner is not None:
                if self.manifests.read(*_place(winner)).attempt == draft.attempt:
                    return winner
                _log_adoption(winner, draft)
                self._discard(_attempt_path(request, draft.attempt))
                return winner
            manifest = draft.model_copy(update={"number": max(taken, default=0) + 1})
            if self._create(request, manifest):
                return manifest.ref

    def _create(self, request: Request, manifest: Manifest) -> bool:
        try:
            return self.manifests.create(manifest)
        except BaseException:
            # A request that was given up may still be carried out: then the files must be there.
            if self.files.local_path("") is not None and manifest.number not in (
                self.manifests.numbers(request.station, request.fingerprint)
            ):
                self._discard(_attempt_path(request, manifest.attempt))
            raise

    def _discard(self, path: str) -> None:
        """Remove an attempt that nothing names; failing to is harmless."""
        try:
            with without_patience():
                self.files.remove(path)
        except (OSError, StoreError) as error:
            log.debug("the attempt %s was left behind: %s", path, error)


def _log_adoption(winner: ArtifactRef, draft: Manifest) -> None:
    if winner.digest == draft.digest:
        log.info("%s was published by another run; the digests agree", winner.short)
    else:
        log.warning(
            "%s was published by another run; the digests differ (%s there, %s here)",
            *(winner.short, winner.digest[:12], draft.digest[:12]),
        )


def _place(ref: ArtifactRef) -> tuple[str, str, int]:
    return ref.station, ref.fingerprint, ref.manifest


def _attempt_path(request: Request, attempt: str) -> str:
    return f"{request.station}/{request.fingerprint}/{attempt}"


def _source(folder: Path, path: str, request: Request) -> Path:
    try:
        source = folder / check_relative_path(path)
    except ValueError as error:
        raise StoreError(f"{request.short} names a file outside its folder: {error}.") from error
    if not source.is_file():
        raise StoreError(
            f"{request.short} names the file {path!r}, which is not in {folder}. "
            "The station must write every file that it lists."
        )
    return source
