"""Looking for damage: every file hashed, or known by its stamp not to have changed since."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import Field

from nanochat_core.artifacts.filesystems import FileInfo, Files
from nanochat_core.artifacts.records import Aliases, Manifests, Runs, manifest_path
from nanochat_core.artifacts.stamps import NOT_READ, Stamps
from nanochat_core.artifacts.threads import in_threads
from nanochat_core.artifacts.translate import reading
from nanochat_core.artifacts.types import ArtifactRef, FileRecord, Manifest
from nanochat_core.config.base import Config
from nanochat_core.errors import DamagedFileError

HASHED_AT_LOOKUP_BYTES = 32 * 2**20
"""A larger file elsewhere that this host has not read yet is judged by its size until it is
fetched: nobody should wait for gigabytes to learn that a stage is cached."""

_MISMATCH = "does not match the sha256 in its manifest"


class Damage(Config):
    """One file of the store that is not what it was; `path` is relative to the store."""

    path: str
    reason: str
    repaired: bool = Field(False, description="a newer manifest of the same artifact is sound")


@dataclass(frozen=True)
class Verifier:
    """Finds damage in one store."""

    files: Files
    manifests: Manifests
    stamps: Stamps

    def files_of(self, manifest: Manifest, *, trust_stamps: bool = True) -> list[Damage]:
        """Damaged files of one artifact."""
        folder = f"{manifest.station}/{manifest.fingerprint}/{manifest.attempt}"
        if self.files.local_path(folder) is None:
            return self._elsewhere(folder, manifest.files, trust_stamps)
        found = []
        for file in manifest.files:
            path = f"{folder}/{file.path}"
            reason = self._damage(path, file, trust_stamps)
            if reason:
                found.append(Damage(path=path, reason=reason))
        return found

    def _damage(self, path: str, file: FileRecord, trust_stamps: bool) -> str | None:
        try:
            with reading(f"the file {path}"):
                size = self.files.size(path)
                if size != file.bytes:
                    return f"has {size:,} bytes, its manifest says {file.bytes:,}"
                local = self.files.local_path(path) if trust_stamps else None
                if local is not None:
                    is_sound = self.stamps.confirms(local, file.sha256)
                else:
                    is_sound = self.files.sha256(path) == file.sha256
        except DamagedFileError as error:
            return f"cannot be read ({error.__cause__})"
        return None if is_sound else _MISMATCH

    def _elsewhere(
        self, folder: str, files: tuple[FileRecord, ...], trust_stamps: bool
    ) -> list[Damage]:
        """As `files_of`, with one listing for all files of a store that is not a folder."""
        with reading(f"the files in {folder}"):
            infos = self.files.infos(folder)

        def damage_of(file: FileRecord) -> Damage | None:
            path = f"{folder}/{file.path}"
            reason = self._damage_elsewhere(path, file, infos, trust_stamps)
            return Damage(path=path, reason=reason) if reason else None

        found = in_threads(damage_of, files, self.files.num_threads)
        return [damage for damage in found if damage is not None]

    def _damage_elsewhere(
        self, path: str, file: FileRecord, infos: Mapping[str, FileInfo], trust_stamps: bool
    ) -> str | None:
        info = infos.get(file.path)
        if info is None:
            return "is not there"
        if info.size != file.bytes:
            return f"has {info.size:,} bytes, its manifest says {file.bytes:,}"
        address = f"{self.files.url}/{path}"
        known = self.stamps.known_sha256(address, info) if trust_stamps else None
        if known == NOT_READ:
            return "could not be read whole when it was fetched (a verification reads it again)"
        if known != file.sha256 and not (trust_stamps and info.size > HASHED_AT_LOOKUP_BYTES):
            try:
                with reading(f"the file {path}"):
                    known = self.files.sha256(path, info)
            except DamagedFileError as error:
                return f"cannot be read ({error.__cause__})"
            self.stamps.remember(address, info, known)
        return None if known in (None, file.sha256) else _MISMATCH

    def artifact(self, ref: ArtifactRef) -> list[Damage]:
        """Damage of one manifest and its files."""
        return self._manifest(ref.station, ref.fingerprint, ref.manifest)

    def everything(self, verified: Callable[[int], None] = lambda _: None) -> list[Damage]:
        """Damage of every manifest of every artifact, superseded ones too.

        `verified` is told of each artifact that was looked at, with its bytes.
        """
        found: list[Damage] = []
        for station, fingerprint in self.manifests.artifacts():
            is_sound_above = False
            for number in reversed(self.manifests.numbers(station, fingerprint)):
                damages = self._manifest(station, fingerprint, number, verified)
                found += [d.model_copy(update={"repaired": is_sound_above}) for d in damages]
                is_sound_above = is_sound_above or not damages
        return found

    def records(self, aliases: Aliases, runs: Runs) -> list[Damage]:
        """Damaged aliases and run records."""
        found = []
        for folder, records in (("aliases", aliases), ("runs", runs)):
            for name in records.names():
                try:
                    records.read(name)
                except DamagedFileError as error:
                    found.append(Damage(path=f"{folder}/{name}.json", reason=str(error)))
        return found

    def _manifest(
        self,
        station: str,
        fingerprint: str,
        number: int,
        verified: Callable[[int], None] = lambda _: None,
    ) -> list[Damage]:
        try:
            manifest = self.manifests.read(station, fingerprint, number)
        except DamagedFileError as error:
            path = manifest_path(station, fingerprint, number)
            return [Damage(path=path, reason=str(error))]
        damages = self.files_of(manifest, trust_stamps=False)
        verified(manifest.bytes)
        return damages
