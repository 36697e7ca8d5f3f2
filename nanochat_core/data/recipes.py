"""What decides the shards and their token files (torch-free)."""

from typing import Literal

from pydantic import Field

from nanochat_core.config.base import Recipe


class HarvestSource(Recipe):
    """Prose of the documentation inside installed distributions; nothing is downloaded.

    `versions` (distribution -> version, "absent" when not installed) and `python` come from
    package metadata at plan time, so that another set of packages makes another artifact.
    """

    kind: Literal["harvest"] = "harvest"
    versions: dict[str, str]
    python: str
    filter_version: int = 1
    max_bytes_per_distribution: int = Field(1_500_000, ge=1)


class FileDigest(Recipe):
    """One file of the user's own text: the name decides order and format, the sha256 content."""

    name: str
    sha256: str
    bytes: int


class FilesSource(Recipe):
    """The user's own text: txt, md, jsonl or parquet files, by content, not by place."""

    kind: Literal["files"] = "files"
    files: tuple[FileDigest, ...]
    text_column: str = "text"
    max_document_characters: int = Field(2_000, ge=1)
    min_document_characters: int = Field(0, ge=0, description="shorter ones are left out")
    drop_near_duplicates: bool = Field(False, description="of several like texts keep the first")


class HubSource(Recipe):
    """Shards as somebody published them: parquet files by content, the last one held out.

    Where their bytes come from (hub, mirrors, a folder) is no part of it.
    """

    kind: Literal["hub"] = "hub"
    files: tuple[FileDigest, ...] = Field(description="train shards in order, then validation")
    text_column: str = "text"


class MixturePart(Recipe):
    """One source of a mixture: `weight` is its share of the text, beside those of the others."""

    name: str = Field(min_length=1, description="as reports call it")
    source: HarvestSource | FilesSource | HubSource = Field(discriminator="kind")
    weight: float = Field(1.0, gt=0)
    max_epochs: float = Field(1.0, gt=0, description="how often its text may be in the shards")
    language: str = Field("", description="a label for reports")


class MixtureSource(Recipe):
    """Several sources in stated shares, counted in bytes of text."""

    kind: Literal["mixture"] = "mixture"
    parts: tuple[MixturePart, ...] = Field(min_length=2)


class ShardsRecipe(Recipe):
    """Documents as parquet shards; the last one is the validation shard."""

    source: HarvestSource | FilesSource | HubSource | MixtureSource = Field(discriminator="kind")
    num_shards: int = Field(4, ge=1, description="train shards, beside the validation shard")
    validation_percent: float = Field(2.0, gt=0, lt=50)
    max_documents: int = Field(0, ge=0, description="use the first ones only; 0 is all")


class TokensRecipe(Recipe):
    """Token files: nothing to choose so far; all that matters is in the inputs."""


class BenchmarksRecipe(Recipe):
    """Files of benchmarks as their authors publish them, by content; none is none."""

    files: tuple[FileDigest, ...] = ()
