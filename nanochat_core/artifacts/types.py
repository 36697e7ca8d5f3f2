"""What the store talks about: what was asked for (`Request`) and what came out (`Manifest`)."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from nanochat_core.artifacts.canonical import canonical_json, sha256_hex
from nanochat_core.config.base import Config
from nanochat_core.config.job import Role

FORMAT = 1
"""Format number of manifests, aliases and run records."""

RESERVED_NAMES = frozenset({"inprogress", "aliases", "runs", "locks", "cache"})
"""Folders of a store that are no stations."""

SHARD_STATION, SCORE_STATION = "shard", "score"
"""Single published shards, and scores of single tasks: artifacts beside the line."""
SWEEP_STATION, EXPORT_STATION = "sweep", "export"
"""What is made of the line's artifacts: a table of many runs, a folder for other programs."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def check_relative_path(path: str) -> str:
    """`path` if it names a file below a folder on any system, else ValueError."""
    parts = path.split("/")
    forbidden = {"\\", ":", "\0"}
    if any(part in ("", ".", "..") for part in parts) or forbidden & set(path):
        raise ValueError(
            f"{path!r} is not a plain relative path; use names joined by '/', "
            "without '..', a drive or a leading '/'"
        )
    return path


def _check_station(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} is a folder of the store itself; name the station otherwise")
    return name


StationName = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$"), AfterValidator(_check_station)
]
RelativePath = Annotated[str, AfterValidator(check_relative_path)]


class ArtifactRef(Config):
    """Names one published artifact: what was asked, what came out, and which manifest says so."""

    station: StationName
    fingerprint: Sha256
    digest: Sha256
    manifest: int = Field(ge=1)

    @property
    def short(self) -> str:
        """`station/` and the first eight characters of the fingerprint."""
        return f"{self.station}/{self.fingerprint[:8]}"


class FileRecord(Config):
    """One file of an artifact; `path` is relative to its attempt folder."""

    path: RelativePath
    role: Role
    bytes: int = Field(ge=0)
    sha256: Sha256


class Request(Config):
    """What is asked for. Input names map to the *digests* of the artifacts that go in.

    A recipe without a stable form raises ConfigError here, before any work.
    """

    station: StationName
    code_version: int = Field(ge=1)
    recipe: dict[str, Any]
    inputs: dict[str, Sha256] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _recipe_has_a_stable_form(self) -> "Request":
        canonical_json(self.recipe)
        return self

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of station, code version, recipe and input digests."""
        asked = {
            "station": self.station,
            "code_version": self.code_version,
            "recipe": self.recipe,
            "inputs": self.inputs,
        }
        return sha256_hex(canonical_json(asked))

    @property
    def short(self) -> str:
        """`station/` and the first eight characters of the fingerprint."""
        return f"{self.station}/{self.fingerprint[:8]}"


def result_digest(files: Iterable[FileRecord]) -> str:
    """sha256 over the sorted (path, sha256) of the files whose role is `result`."""
    results = sorted((file.path, file.sha256) for file in files if file.role == "result")
    return sha256_hex(canonical_json(results))


class Manifest(Config):
    """Everything that is known about one artifact; the file that makes it visible."""

    format: Literal[1] = 1
    number: int = Field(ge=1)
    station: StationName
    fingerprint: Sha256
    code_version: int
    recipe: dict[str, Any]
    inputs: dict[str, Sha256]
    input_refs: dict[str, ArtifactRef] = Field(description="lineage, outside the fingerprint")
    attempt: str = Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z-]{0,63}$")
    files: tuple[FileRecord, ...] = Field(min_length=1)
    metrics: dict[str, float | int | str]
    provenance: dict[str, Any]
    digest: Sha256
    created: str = Field(description="ISO 8601, UTC")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Manifest":
        if self.request.fingerprint != self.fingerprint:
            raise ValueError("the fingerprint is not that of its station, recipe and inputs")
        if result_digest(self.files) != self.digest:
            raise ValueError("the digest is not that of its result files")
        if len({file.path for file in self.files}) != len(self.files):
            raise ValueError("a file is listed twice")
        return self

    @property
    def request(self) -> Request:
        """What was asked for."""
        return Request(
            station=self.station,
            code_version=self.code_version,
            recipe=self.recipe,
            inputs=self.inputs,
        )

    @property
    def ref(self) -> ArtifactRef:
        """The reference by which others name this artifact."""
        return ArtifactRef(
            station=self.station,
            fingerprint=self.fingerprint,
            digest=self.digest,
            manifest=self.number,
        )

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)
