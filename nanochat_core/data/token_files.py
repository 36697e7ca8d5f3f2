"""Token files: every document of a shard as token ids behind a BOS, and the document lengths.

`<shard>.tokens.bin` holds little-endian uint16 (uint32 for vocabularies over 65,536) and
`<shard>.lengths.bin` one little-endian uint32 a document; `tokens.json` names the shards.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from nanochat_core.config.base import Config
from nanochat_core.config.job import Role, StageOutput
from nanochat_core.data.recipes import TokensRecipe
from nanochat_core.data.shards import TEXT_COLUMN, ShardIndex
from nanochat_core.data.workers import ParallelMap, map_in_processes
from nanochat_core.errors import DataError
from nanochat_core.logs import Progress
from nanochat_core.tokenizer.tokenizer import Tokenizer

TOKENS_FILE = "tokens.json"
DOCUMENTS_PER_BATCH = 1_000
TokenArray = NDArray[np.uint16] | NDArray[np.uint32]


class ShardCounts(Config):
    """How much is in one token file."""

    documents: int
    tokens: int


class TokenIndex(Config):
    """`tokens.json`: the shards in order, their sizes, and how ids are stored."""

    dtype: Literal["uint16", "uint32"]
    vocab_size: int
    bos_id: int
    train: tuple[str, ...]
    validation: str
    counts: dict[str, ShardCounts] = Field(description="by shard")

    @classmethod
    def load(cls, folder: Path) -> "TokenIndex":
        """Read `tokens.json` of a tokens artifact."""
        path = folder / TOKENS_FILE
        if not path.is_file():
            raise DataError(f"{folder} holds no {TOKENS_FILE}; expected the output of tokens")
        return cls.model_validate_json(path.read_bytes())

    def total(self, shards: tuple[str, ...]) -> ShardCounts:
        """Documents and tokens of several shards."""
        return ShardCounts(
            documents=sum(self.counts[name].documents for name in shards),
            tokens=sum(self.counts[name].tokens for name in shards),
        )


@dataclass(frozen=True)
class TokenShard:
    """One shard's tokens (read from disk as they are touched) and document lengths."""

    folder: Path
    name: str
    dtype: Literal["uint16", "uint32"]

    @cached_property
    def tokens(self) -> TokenArray:
        """All documents one after the other; each starts with BOS."""
        path = self.folder / f"{self.name}.tokens.bin"
        little_endian = np.dtype(self.dtype).newbyteorder("<")
        if not path.stat().st_size:
            return np.zeros(0, dtype=little_endian)
        # A plain view: every slice of an np.memmap object costs microseconds of bookkeeping.
        return np.memmap(path, dtype=little_endian, mode="r").view(np.ndarray)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, BOS included."""
        path = self.folder / f"{self.name}.lengths.bin"
        return np.fromfile(path, dtype="<u4").astype(np.int64)


@dataclass(frozen=True)
class _ShardJob:
    shard: Path
    tokenizer: Path
    output: Path


def _batches(shard: Path) -> Iterator[list[str]]:
    """Texts of a shard, one bounded batch after the other."""
    with pq.ParquetFile(shard) as file:
        for batch in file.iter_batches(DOCUMENTS_PER_BATCH, columns=[TEXT_COLUMN]):
            yield batch.column(0).to_pylist()


def _tokenize_shard(job: _ShardJob) -> ShardCounts:
    tokenizer = Tokenizer.load(job.tokenizer)
    dtype = f"<{np.dtype(_dtype_for(tokenizer.vocab_size)).str[1:]}"
    documents = tokens = 0
    stem = job.shard.stem
    with (
        (job.output / f"{stem}.tokens.bin").open("wb") as token_file,
        (job.output / f"{stem}.lengths.bin").open("wb") as length_file,
    ):
        for texts in _batches(job.shard):
            encoded = [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(texts)]
            lengths = np.array([len(ids) for ids in encoded], dtype="<u4")
            flat = np.concatenate([np.array(ids, dtype=dtype) for ids in encoded])
            # Not `tofile`: its errors do not say that the disk is full.
            token_file.write(flat.data)
            length_file.write(lengths.data)
            documents += len(encoded)
            tokens += len(flat)
    return ShardCounts(documents=documents, tokens=tokens)


def _dtype_for(vocab_size: int) -> Literal["uint16", "uint32"]:
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def build_tokens(
    recipe: TokensRecipe,  # noqa: ARG001 (nothing to choose so far)
    shards: Path,
    tokenizer: Path,
    output: Path,
    *,
    workers: int,
    progress: Progress,
    mapped: ParallelMap = map_in_processes,
) -> StageOutput:
    """Write token and length files of every shard, and `tokens.json`, into `output`.

    `shards` and `tokenizer` are folders of those artifacts. Shards are tokenized in parallel, as
    `mapped` does it, a thousand documents at a time; the files do not depend on that.
    """
    index = ShardIndex.load(shards)
    names = (*index.train, index.validation)
    output.mkdir(parents=True, exist_ok=True)
    jobs = [_ShardJob(shards / name, tokenizer, output) for name in names]
    progress.total = len(jobs)
    counts: dict[str, ShardCounts] = {}
    results: Iterator[ShardCounts] = mapped(_tokenize_shard, jobs, workers=workers)
    for name, result in zip(names, results, strict=True):
        counts[Path(name).stem] = result
        progress.update(len(counts), f"{name}: {result.tokens:,} tokens")
    loaded = Tokenizer.load(tokenizer)
    token_index = TokenIndex(
        dtype=_dtype_for(loaded.vocab_size),
        vocab_size=loaded.vocab_size,
        bos_id=loaded.bos_id,
        train=tuple(Path(name).stem for name in index.train),
        validation=Path(index.validation).stem,
        counts=counts,
    )
    text = json.dumps(token_index.model_dump(mode="json"), indent=1)
    (output / TOKENS_FILE).write_text(text, encoding="utf-8")
    return _stage_output(token_index, characters=index.characters)


def _stage_output(index: TokenIndex, *, characters: int) -> StageOutput:
    files: dict[str, Role] = {TOKENS_FILE: "result"}
    for name in index.counts:
        files[f"{name}.tokens.bin"] = "result"
        files[f"{name}.lengths.bin"] = "result"
    train, validation = index.total(index.train), index.total((index.validation,))
    metrics: dict[str, Any] = {
        "train_tokens": train.tokens,
        "train_documents": train.documents,
        "validation_tokens": validation.tokens,
        "characters_per_token": round(characters / (train.tokens + validation.tokens), 3),
    }
    return StageOutput(files=files, metrics=metrics)
