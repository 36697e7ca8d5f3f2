"""The artifact store: one class over any fsspec URL, that trusts nothing unread."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from nanochat_core.artifacts import generations
from nanochat_core.artifacts.canonical import sha256_hex, with_stable_form
from nanochat_core.artifacts.copies import LocalCopies
from nanochat_core.artifacts.filesystems import Capabilities, Files
from nanochat_core.artifacts.leases import TTL_SECONDS, Lease, LeaseFile, leased, place_of
from nanochat_core.artifacts.leftovers import unnamed_paths
from nanochat_core.artifacts.local_files import LocalFiles
from nanochat_core.artifacts.location import open_files, user_cache_folder
from nanochat_core.artifacts.locks import locked
from nanochat_core.artifacts.publishing import Publisher
from nanochat_core.artifacts.records import Aliases, Manifests, Runs, check_record_name
from nanochat_core.artifacts.resolving import resolve_name
from nanochat_core.artifacts.stamps import Stamps
from nanochat_core.artifacts.types import ArtifactRef, Manifest, Request
from nanochat_core.artifacts.verifying import Damage, Verifier
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import (
    ArtifactNotFoundError,
    DamagedFileError,
    StationBusyError,
    StoreError,
    StoreUnavailableError,
)

log = logging.getLogger(__name__)

MIN_FREE_BYTES = 256 * 2**20
CACHE_LIMIT_BYTES = 50 * 10**9
"""More than the inputs of the largest preset together, less than most disks."""

_Refs = list[ArtifactRef]
_Damages = list[Damage]


class ArtifactStore:
    """Artifacts, aliases and run records below one URL: a folder, `memory://…` or `s3://…`.

    `cache_folder` holds what belongs to this host: stamps of hashed files and, for a store that is
    not a local folder, its locks, in-progress folders and local copies. It defaults to `cache` in a
    local store, else to a folder of the user. What is not found is looked for in `upstream`, which
    is never written, and copied from there. An unknown kind of URL raises ConfigError.
    """

    def __init__(
        self,
        url: str,
        *,
        cache_folder: Path | None = None,
        cache_limit_bytes: int = CACHE_LIMIT_BYTES,
        upstream: "ArtifactStore | None" = None,
        lease_seconds: float = TTL_SECONDS,
    ) -> None:
        self.files: Files = open_files(url)
        self.url = self.files.url
        self.upstream, self.lease_seconds = upstream, lease_seconds
        self._upstream_is_away = False
        root = self.files.local_path("")
        if cache_folder is None:
            cache_folder = user_cache_folder() / "stores" if root is None else root / "cache"
        cache_folder = cache_folder.absolute()
        # What is made here before it is published; the store itself when that is a folder.
        self._here = root or cache_folder / sha256_hex(self.url.encode())[:16]
        stamps = Stamps(cache_folder / "stamps")
        self._manifests = Manifests(self.files)
        self._aliases = Aliases(self.files)
        self._runs = Runs(self.files)
        self._verifier = Verifier(self.files, self._manifests, stamps)
        self._copies = LocalCopies(self._here / "copies", stamps, cache_limit_bytes)
        self._publisher = Publisher(self.files, self._manifests, self.lookup_here, stamps)

    @property
    def is_elsewhere(self) -> bool:
        """Whether the store is no folder of this machine, so that other hosts may work in it."""
        return self.files.local_path("") is None

    def lookup(self, request: Request) -> ArtifactRef | None:
        """The artifact of `request`, with every file hashed or stamped; None when there is none.

        Damage counts as none, with the reason logged; what the upstream has is copied from there.
        Raises StoreUnavailableError when the store cannot be reached, as that says nothing about
        the artifact.
        """
        return self.lookup_here(request) or self._from_upstream(request)

    def lookup_here(self, request: Request) -> ArtifactRef | None:
        """The same without the upstream."""
        manifest = self._manifests.newest(request.station, request.fingerprint)
        if manifest is None:
            return None
        damages = self._verifier.files_of(manifest)
        for damage in damages:
            log.warning("%s cannot be used: %s %s", request.short, damage.path, damage.reason)
        return None if damages else manifest.ref

    def _from_upstream(self, request: Request) -> ArtifactRef | None:
        """Copied from the upstream, whose troubles cost the time to make it here.

        One that cannot be reached is not asked again by this process: that takes long to find out.
        """
        if self.upstream is None or self._upstream_is_away:
            return None
        # It needs this module.
        from nanochat_core.artifacts.transfer import copy_artifact

        try:
            found = self.upstream.lookup(request)
            if found is None:
                return None
            ref = copy_artifact(self.upstream, self, self.upstream.manifest(found))
        except StoreError as error:
            log.warning("%s was not taken from upstream: %s", request.short, error)
            self._upstream_is_away = isinstance(error, StoreUnavailableError)
            return None
        log.info("%s was copied from %s", ref.short, self.upstream.url)
        return ref

    def publish(
        self,
        request: Request,
        folder: Path,
        output: StageOutput,
        *,
        input_refs: Mapping[str, ArtifactRef] | None = None,
        provenance: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> ArtifactRef:
        """Store the files that `output` lists from `folder`, then make them visible at once.

        If a sound artifact of the same request is there, it is adopted instead and the log says
        whether the digests agree; `replace` (a forced run) publishes beside it under the next
        number, which readers prefer. Local result files are hard-linked where possible, so nobody
        may write to them afterwards. Raises StoreUnavailableError (disk full, not writable) with
        nothing visible, StoreError for a listed file that is not there.
        """
        return self._publisher.publish(
            request,
            folder,
            output,
            input_refs=input_refs or {},
            provenance=provenance or {},
            replace=replace,
        )

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """Everything known about one artifact; ArtifactNotFoundError, DamagedFileError."""
        if ref.manifest not in self._manifests.numbers(ref.station, ref.fingerprint):
            raise ArtifactNotFoundError(
                f"{ref.short} has no manifest {ref.manifest} in {self.url}. "
                "Run the line again to make it, or give the store that has it."
            )
        manifest = self._manifests.read(ref.station, ref.fingerprint, ref.manifest)
        if manifest.digest != ref.digest:
            raise DamagedFileError(
                f"{ref.short} was expected to hold {ref.digest[:12]}…, but its manifest says "
                f"{manifest.digest[:12]}…. Run again with the same parameters."
            )
        return manifest

    def materialize(self, ref: ArtifactRef) -> Path:
        """A local folder with the verified files of an artifact; do not write into it.

        The folder itself in a local store, else a copy that stays until space runs short.
        Where its own files are damaged or gone, those of another manifest with the same digest do:
        a repaired artifact has a new number, by which what was made from it does not know it.
        Raises ArtifactNotFoundError or DamagedFileError.
        """
        try:
            return self._materialize(self.manifest(ref))
        except (ArtifactNotFoundError, DamagedFileError):
            for other in self._equals(ref):
                with suppress(DamagedFileError):
                    return self._materialize(other)
            raise

    def _equals(self, ref: ArtifactRef) -> Iterator[Manifest]:
        for number in reversed(self._manifests.numbers(ref.station, ref.fingerprint)):
            with suppress(DamagedFileError):
                manifest = self._manifests.read(ref.station, ref.fingerprint, number)
                if number != ref.manifest and manifest.digest == ref.digest:
                    yield manifest

    def _materialize(self, manifest: Manifest) -> Path:
        ref = manifest.ref
        folder = self.files.local_path(f"{ref.station}/{ref.fingerprint}/{manifest.attempt}")
        if folder is None:
            return self._copies.fetch(self.files, manifest)
        damages = self._verifier.files_of(manifest)
        if damages:
            raise DamagedFileError(
                f"{ref.short} is damaged: {damages[0].path} {damages[0].reason}. "
                "Run again with the same parameters to make it anew."
            )
        return folder

    def resolve(self, name: str) -> ArtifactRef:
        """What an alias, a `station/fingerprint` or a fingerprint stands for.

        A fingerprint may be cut to its first characters (alone: six or more). The newest valid
        manifest counts. Raises ArtifactNotFoundError that lists what exists.
        """
        return resolve_name(name, self._aliases, self._manifests, self.url)

    def alias(self, name: str) -> ArtifactRef | None:
        """What an alias stands for; None when there is none or it is damaged, which is logged."""
        try:
            return self._aliases.read(name)
        except DamagedFileError as error:
            log.warning("%s", error)
            return None

    def aliases(self) -> dict[str, ArtifactRef]:
        """Every undamaged alias."""
        found = {name: self.alias(name) for name in self._aliases.names()}
        return {name: ref for name, ref in found.items() if ref is not None}

    def set_alias(self, name: str, ref: ArtifactRef) -> bool:
        """Make `name` stand for the published artifact `ref`; False if it already did."""
        check_record_name("alias", name)
        self.manifest(ref)
        if self.alias(name) == ref:
            return False
        self._aliases.write(name, ref)
        return True

    @contextmanager
    def lock(self, station: str, fingerprint: str, *, wait: bool = False) -> Iterator[Lease]:
        """Be the only maker of an artifact, as long as the lease says so.

        Raises StationBusyError naming the owner, or waits with `wait`. In a local folder the lock
        ends with the process. In a store elsewhere it can be lost, so ask the lease now and then;
        whether a holder there still lives may take `lease_seconds` to find out.
        """
        with self._held(station, fingerprint, wait=wait, watch=True) as lease:
            yield lease

    @contextmanager
    def _held(self, station: str, fingerprint: str, *, wait: bool, watch: bool) -> Iterator[Lease]:
        name, what = f"{station}-{fingerprint}", f"{station}/{fingerprint[:8]}"
        locks = self._here / "locks"
        # First the lock of this host: its holder knows that no other process here has the lease.
        with locked(locks / f"{name}.lock", what, wait=wait):
            if not self.is_elsewhere or not self._has_leases():
                yield Lease()
                return
            with leased(
                LeaseFile(self.files, f"locks/{name}.json"),
                what,
                place=place_of(locks),
                wait=wait,
                watch=watch,
                ttl_seconds=self.lease_seconds,
            ) as lease:
                yield lease

    def _has_leases(self) -> bool:
        found = self.capabilities()
        has_both = found.conditional_create and found.conditional_replace
        if not has_both:
            log.warning(
                "the store %s has no conditional writes: only processes of this host are kept from "
                "making the same thing at once",
                self.url,
            )
        return has_both

    def capabilities(self) -> Capabilities:
        """What the store was found to be able to do; asked once."""
        return self.files.capabilities()

    def generation(self, request: Request, *, fresh: bool = False) -> Path:
        """The local folder in which `request` is worked on; it outlives a killed process.

        The newest one, made if there is none; `fresh` (a forced run) starts another and removes
        the older. After a publication, however damaged, the next one is fresh by itself. What
        other hosts have put into a store elsewhere counts: the folder has its name, then, and
        `stored_generation` its content. Hold the lock of the artifact.
        """
        taken = self._manifests.numbers(request.station, request.fingerprint)
        return generations.newest_generation(
            self._here / generations.FOLDER,
            request,
            next_manifest=max(taken, default=0) + 1,
            fresh=fresh,
            stored=self._stored(request),
        )

    def stored_generation(self, request: Request, generation: Path) -> str:
        """Where in the store a local in-progress folder is copied to, for other hosts."""
        return f"{generations.StoredGenerations(self.files, request).folder}/{generation.name}"

    def _stored(self, request: Request) -> generations.StoredGenerations | None:
        return generations.StoredGenerations(self.files, request) if self.is_elsewhere else None

    def discard_generations(self, request: Request) -> None:
        """Remove the in-progress folders of `request`, after publishing."""
        inprogress = self._here / generations.FOLDER
        generations.sweep_discarded(inprogress)
        stored = self._stored(request)
        try:
            if stored is not None:
                stored.remove()
        except StoreUnavailableError as error:
            # The folder here stays for the next run to see that there is something to remove.
            log.warning("%s", error)
        else:
            generations.discard_generations(inprogress, request)

    def clear_leftovers(self, request: Request) -> None:
        """Remove what killed runs left of a published artifact, unless it is being made right now.

        Uploads to a store that is not a local folder stay: another host may be at work on them.
        """
        generation = self._here / generations.FOLDER / request.station / request.fingerprint
        unnamed = partial(unnamed_paths, self.files, self._manifests, request)
        if not generation.exists() and (self.is_elsewhere or not unnamed()):
            return
        # Nobody waits for tidiness, and a store that cannot be written can still be read.
        with (
            suppress(StationBusyError, StoreUnavailableError),
            self._held(request.station, request.fingerprint, wait=False, watch=False),
        ):
            for path in unnamed() if not self.is_elsewhere else []:
                log.info("removing %s, which a killed run left", path)
                self.files.remove(path)
            self.discard_generations(request)

    def save_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Write or replace the record of a run."""
        self._runs.write(check_record_name("run", run_id), with_stable_form(dict(record)))

    def runs(self) -> dict[str, dict[str, Any]]:
        """Run id -> record, by id; damaged ones are logged and left out."""
        records: dict[str, dict[str, Any]] = {}
        for run_id in self._runs.names():
            try:
                record = self._runs.read(run_id)
            except DamagedFileError as error:
                log.warning("%s", error)
                continue
            if record is not None:
                records[run_id] = record
        return records

    def check_writable(self, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        """Raise StoreUnavailableError unless work can start: writable, with space left.

        A store that ignores conditional writes is said in a log line.
        """
        self.files.prepare(min_free_bytes)
        if self.is_elsewhere:
            LocalFiles(str(self._here)).prepare(min_free_bytes)

    def verify(
        self,
        ref: ArtifactRef | None = None,
        *,
        verified: Callable[[int], None] = lambda _: None,
    ) -> _Damages:
        """Hash every file of one artifact, or of the whole store with its records; trust no stamp.

        Returns what is damaged: manifests (superseded ones too), files, aliases, run records. Of
        the whole store `verified` is told how many bytes were read, artifact by artifact.
        """
        if ref is not None:
            return self._verifier.artifact(ref)
        damages = self._verifier.everything(verified)
        return [*damages, *self._verifier.records(self._aliases, self._runs)]

    def list(self, station: str | None = None) -> _Refs:
        """The newest valid manifest of every artifact, oldest first; files are not read."""
        found = [self._manifests.newest(*place) for place in self._manifests.artifacts(station)]
        manifests = [manifest for manifest in found if manifest is not None]
        return [m.ref for m in sorted(manifests, key=lambda m: (m.created, m.station))]


def only_read(url: str) -> ArtifactStore:
    """A store of which nothing changes by looking: notes on it go to a folder of this user."""
    return ArtifactStore(url, cache_folder=user_cache_folder() / "stores")
