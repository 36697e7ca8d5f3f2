"""Looking for damage: every file hashed, or known by its stamp not to have changed since."""

from dataclasses import dataclass

from pydantic import Field

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.records import Aliases, Manifests, Runs, manifest_path
from nanochat_core.artifacts.stamps import Stamps
from nanochat_core.artifacts.translate import reading
from nanochat_core.artifacts.types import ArtifactRef, FileRecord, Manifest
from nanochat_core.config.base import Config
from nanochat_core.errors import DamagedFileError


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
        """Damaged files of one artifact. A store elsewhere is read whole: it has no stamps."""
        folder = f"{manifest.station}/{manifest.fingerprint}/{manifest.attempt}"
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
        return None if is_sound else "does not match the sha256 in its manifest"

    def artifact(self, ref: ArtifactRef) -> list[Damage]:
        """Damage of one manifest and its files."""
        return self._manifest(ref.station, ref.fingerprint, ref.manifest)

    def everything(self) -> list[Damage]:
        """Damage of every manifest of every artifact, superseded ones too."""
        found: list[Damage] = []
        for station, fingerprint in self.manifests.artifacts():
            is_sound_above = False
            for number in reversed(self.manifests.numbers(station, fingerprint)):
                damages = self._manifest(station, fingerprint, number)
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

    def _manifest(self, station: str, fingerprint: str, number: int) -> list[Damage]:
        try:
            manifest = self.manifests.read(station, fingerprint, number)
        except DamagedFileError as error:
            path = manifest_path(station, fingerprint, number)
            return [Damage(path=path, reason=str(error))]
        return self.files_of(manifest, trust_stamps=False)
