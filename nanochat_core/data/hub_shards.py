"""Published shards: how many a run needs, and what is in one that has arrived."""

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from nanochat_core.config.base import Config
from nanochat_core.data.fetching import FetchPolicy
from nanochat_core.data.hub import hub_headers
from nanochat_core.data.hub_address import ENDPOINT
from nanochat_core.data.recipes import FileDigest, HubSource
from nanochat_core.data.shards import TEXT_COLUMN, ShardIndex, ShardWriter
from nanochat_core.data.source_notes import SAMPLE_BYTES, SourceNote
from nanochat_core.errors import DataError

CLIMBMIX = "hf://datasets/karpathy/climbmix-400b-shuffle"
USUAL_CHARACTERS = 250_000_000.0
"""Of a shard of the reference's data: RECIPE section 4."""
SHARD_CHARACTERS = {CLIMBMIX: USUAL_CHARACTERS}
"""Characters of one shard of sets that are known."""
CHARACTERS_PER_BYTE = 2.5
"""Of a compressed shard, about: the 250 M characters above are some 100 MB."""
SPARE = 1.01
"""A row has places that no document fills."""
READ_DOCUMENTS = 4_000


@dataclass(frozen=True)
class HubAccess:
    """How this process asks the hub; a token is shown to nobody else, nor written anywhere."""

    policy: FetchPolicy = field(default_factory=FetchPolicy)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "HubAccess":
        """By the variables that the hub's own tools read: HF_ENDPOINT and HF_TOKEN."""
        policy = FetchPolicy(endpoint=environ.get("HF_ENDPOINT", "") or ENDPOINT)
        return cls(policy, hub_headers(environ.get("HF_TOKEN", "").strip()))


class ShardContents(Config):
    """What one published shard was found to hold."""

    documents: int
    characters: int
    bytes: int
    """Of its text in UTF-8."""
    column: str
    is_plain: bool
    """Whether its text can be read as that of our own shards, without a rewrite."""

    @classmethod
    def kept(cls, metrics: Mapping[str, float | int | str], column: str) -> "ShardContents | None":
        """What an artifact says of its shard; None of another column, or where it says less."""
        try:
            found = cls.model_validate(metrics)
        except ValidationError:
            return None
        return found if found.column == column else None

    def metrics(self) -> dict[str, float | int | str]:
        """As they are kept with the artifact."""
        return {**self.model_dump(), "is_plain": int(self.is_plain)}


def usual_characters(address: str) -> float | None:
    """Characters of a shard of a set that is known; None of any other."""
    return SHARD_CHARACTERS.get(address.partition("@")[0].rstrip("/"))


def characters_of(shards: Sequence[FileDigest]) -> float:
    """Characters of one of these, about, before it was read."""
    return CHARACTERS_PER_BYTE * sum(file.bytes for file in shards) / max(len(shards), 1)


def num_shards_for(characters: float, per_shard: float, block_shards: int) -> int:
    """Train shards that hold so much text, in whole blocks, so that a longer run extends it."""
    wanted = max(1, math.ceil(SPARE * characters / max(per_shard, 1.0)))
    return -(-wanted // block_shards) * block_shards


def examine(shard: Path, column: str, name: str) -> ShardContents:
    """Read all text of a shard once; DataError that names it when it is no parquet with text."""
    documents = characters = size = empty = 0
    try:
        with pq.ParquetFile(shard) as file:
            kind = _kind_of(file, column, name)
            for batch in file.iter_batches(READ_DOCUMENTS, columns=[column]):
                texts = batch.column(0)
                empty += texts.null_count
                documents += len(texts) - texts.null_count
                characters += pc.sum(pc.utf8_length(texts)).as_py() or 0
                size += pc.sum(pc.binary_length(texts)).as_py() or 0
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"the shard {name} is no readable parquet file ({error}), though its bytes are those "
            "that were published; name another set of shards with --source"
        ) from error
    is_plain = column == TEXT_COLUMN and pa.types.is_string(kind) and not empty
    return ShardContents(
        documents=documents, characters=characters, bytes=size, column=column, is_plain=is_plain
    )


def _kind_of(file: pq.ParquetFile, column: str, name: str) -> pa.DataType:
    schema = file.schema_arrow
    if column not in schema.names:
        raise DataError(
            f"the shard {name} has no column {column!r}; it has {schema.names}; name the column "
            "of text with --set shards.source.text_column=NAME"
        )
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(
            f"the shard {name} holds {kind} in column {column!r}; expected text; name the column "
            "of text with --set shards.source.text_column=NAME"
        )
    return kind


def put_shard(shard: Path, target: Path, contents: ShardContents, *, as_ours: bool) -> None:
    """Put a shard at `target`: a hard link where that is possible, else a copy.

    `as_ours` it is rewritten where our own shards would look otherwise.
    """
    if as_ours and not contents.is_plain:
        _rewrite(shard, target, contents.column)
        return
    try:
        os.link(shard, target)
    except OSError:
        shutil.copyfile(shard, target)


def _rewrite(shard: Path, target: Path, column: str) -> None:
    writer = ShardWriter(target)
    try:
        for text in _texts(shard, column):
            writer.add(text)
    finally:
        writer.close()


def _texts(shard: Path, column: str) -> Iterator[str]:
    with pq.ParquetFile(shard) as file:
        for batch in file.iter_batches(READ_DOCUMENTS, columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)


def index_of(source: HubSource, contents: Mapping[str, ShardContents]) -> ShardIndex:
    """`shards.json` of published shards; `contents` by published name."""
    *train, validation = source.files
    if not train or not contents[validation.name].documents:
        raise DataError(
            f"{len(train)} train shards and {contents[validation.name].documents} documents to "
            "validate on; expected one or more of both"
        )
    return ShardIndex(
        train=tuple(file.name for file in train),
        validation=validation.name,
        documents=sum(found.documents for found in contents.values()),
        characters=sum(found.characters for found in contents.values()),
    )


def note_of(
    source: HubSource, contents: Mapping[str, ShardContents], folder: Path, name: str
) -> SourceNote:
    """What `sources.json` says of published shards that lie in `folder` as ours."""
    *train, validation = source.files
    held_out = contents[validation.name]
    return SourceNote(
        name=name,
        documents=sum(contents[file.name].documents for file in train),
        bytes=sum(contents[file.name].bytes for file in train),
        epochs=1.0,
        held_out_documents=held_out.documents,
        held_out_bytes=held_out.bytes,
        sample=_sample(folder / validation.name),
    )


def _sample(shard: Path) -> str:
    """Its first documents, as far as a sample goes."""
    documents: list[str] = []
    room = SAMPLE_BYTES
    for text in _texts(shard, TEXT_COLUMN):
        begin = text.encode()[:room].decode(errors="ignore")
        documents.append(begin)
        room -= len(begin.encode()) + 2
        if room <= 0:
            break
    return "\n\n".join(documents)
