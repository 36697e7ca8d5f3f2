"""The sealed records of a store: manifests, aliases and runs; read back only when undamaged."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.artifacts.translate import reading, writing
from nanochat_core.artifacts.types import FORMAT, RESERVED_NAMES, ArtifactRef, Manifest
from nanochat_core.errors import ConfigError, DamagedFileError

log = logging.getLogger(__name__)

_MANIFEST_NAME = re.compile(r"^manifest-(\d{6,})\.json$")
_STATION_NAME = re.compile(r"^[a-z][a-z0-9_]{0,63}$")
_FINGERPRINT = re.compile(r"^[0-9a-f]{64}$")
_RECORD_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


def manifest_path(station: str, fingerprint: str, number: int) -> str:
    """Where manifest `number` of an artifact lies in the store."""
    return f"{station}/{fingerprint}/manifest-{number:06d}.json"


def manifest_number(name: str) -> int | None:
    """The number in the file name of a manifest; None for any other file."""
    match = _MANIFEST_NAME.match(name)
    return None if match is None else int(match[1])


def is_station(name: str) -> bool:
    """Whether a folder of this name in a store holds artifacts."""
    return bool(_STATION_NAME.match(name)) and name not in RESERVED_NAMES


def is_fingerprint(name: str) -> bool:
    """Whether a folder of this name may hold one artifact."""
    return bool(_FINGERPRINT.match(name))


def check_record_name(kind: str, name: str) -> str:
    """`name` if it can name an alias or a run, else ConfigError."""
    if not _RECORD_NAME.match(name):
        raise ConfigError(
            f"{kind} name {name!r} cannot be used; take up to 100 letters, digits, '.', '_' and "
            "'-', starting with a letter or digit."
        )
    return name


class Manifests:
    """The numbered manifests of every artifact."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def artifacts(self, station: str | None = None) -> tuple[tuple[str, str], ...]:
        """(station, fingerprint) of every folder that may hold an artifact."""
        with reading("the store"):
            stations = self.files.names("") if station is None else (station,)
            return tuple(
                (name, fingerprint)
                for name in stations
                if is_station(name)
                for fingerprint in self.files.names(name)
                if is_fingerprint(fingerprint)
            )

    def numbers(self, station: str, fingerprint: str) -> tuple[int, ...]:
        """Numbers in use, rising, damaged manifests included."""
        with reading(f"the artifact {station}/{fingerprint}"):
            names = self.files.names(f"{station}/{fingerprint}")
        return tuple(sorted(n for n in map(manifest_number, names) if n is not None))

    def read(self, station: str, fingerprint: str, number: int) -> Manifest:
        """One manifest; DamagedFileError when it is gone, changed or lies in a wrong place."""
        path = manifest_path(station, fingerprint, number)
        place = f"the manifest {path}"
        with reading(place):
            data = self.files.read(path)
        try:
            manifest = Manifest.model_validate(unseal(data, place))
        except (ValidationError, ConfigError) as error:
            raise DamagedFileError(f"{place} is damaged: {error}") from error
        if (manifest.station, manifest.fingerprint, manifest.number) != (
            station,
            fingerprint,
            number,
        ):
            raise DamagedFileError(f"{place} is damaged: it belongs to another artifact.")
        return manifest

    def newest(self, station: str, fingerprint: str) -> Manifest | None:
        """The valid manifest with the highest number; damaged ones are logged and passed over."""
        for number in reversed(self.numbers(station, fingerprint)):
            try:
                return self.read(station, fingerprint, number)
            except DamagedFileError as error:
                log.warning("%s", error)
        return None

    def create(self, manifest: Manifest) -> bool:
        """Make an artifact visible; False when that number is taken."""
        path = manifest_path(manifest.station, manifest.fingerprint, manifest.number)
        with writing(f"the manifest {path}"):
            return self.files.create(path, seal(manifest.model_dump(mode="json")))


class Aliases:
    """Names that move from artifact to artifact."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def names(self) -> tuple[str, ...]:
        """Every alias, damaged ones included."""
        return _record_names(self.files, "aliases")

    def read(self, name: str) -> ArtifactRef | None:
        """What an alias stands for; None when there is none; DamagedFileError when changed."""
        body = _read_record(self.files, "aliases", name)
        try:
            return None if body is None else ArtifactRef.model_validate(body)
        except ValidationError as error:
            raise DamagedFileError(f"the alias {name} is damaged: {error}") from error

    def write(self, name: str, ref: ArtifactRef) -> None:
        """Make `name` stand for `ref`."""
        _write_record(self.files, "aliases", name, ref.model_dump(mode="json"))

    def remove(self, name: str) -> None:
        """Let `name` stand for nothing; the artifact stays."""
        path = _record_path("aliases", name)
        with writing(path):
            self.files.remove(path)


class Runs:
    """What each run did."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def names(self) -> tuple[str, ...]:
        """Every run, damaged ones included."""
        return _record_names(self.files, "runs")

    def read(self, run_id: str) -> dict[str, Any] | None:
        """The record of a run; None when there is none; DamagedFileError when changed."""
        return _read_record(self.files, "runs", run_id)

    def write(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Replace the record of a run."""
        _write_record(self.files, "runs", run_id, record)


def _record_names(files: Files, folder: str) -> tuple[str, ...]:
    with reading(folder):
        found = files.names(folder)
    stems = (name.removesuffix(".json") for name in found if name.endswith(".json"))
    return tuple(stem for stem in stems if _RECORD_NAME.match(stem))


_RECORD_KINDS = {"aliases": "alias", "runs": "run"}
"""What one record in a folder is called."""


def _record_path(folder: str, name: str) -> str:
    return f"{folder}/{check_record_name(_RECORD_KINDS[folder], name)}.json"


def _read_record(files: Files, folder: str, name: str) -> dict[str, Any] | None:
    path = _record_path(folder, name)
    with reading(path):
        try:
            data = files.read(path)
        except FileNotFoundError:
            return None
    body = unseal(data, path)
    record = body.get("record")
    if body.get("format") != FORMAT or body.get("name") != name or type(record) is not dict:
        raise DamagedFileError(f"{path} is damaged: it is no record of {name!r}.")
    return record


def _write_record(files: Files, folder: str, name: str, record: Mapping[str, Any]) -> None:
    path = _record_path(folder, name)
    with writing(path):
        files.write(path, seal({"format": FORMAT, "name": name, "record": dict(record)}))
