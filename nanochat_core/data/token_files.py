"""Token files: every document of a shard as token ids behind a BOS, and the document lengths.

`<shard>.tokens.bin` holds little-endian uint16 (uint32 for vocabularies over 65,536) and
`<shard>.lengths.bin` one little-endian uint32 a document; `tokens.json` names the shards.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nanochat_core.config.base import Config
from nanochat_core.config.job import Role, StageOutput
from nanochat_core.data.recipes import TokensRecipe
from nanochat_core.data.shards import ShardIndex
from nanochat_core.data.tokenizing import Piece, PieceCounts, Work, enough_workers, tokenize
from nanochat_core.data.workers import ParallelMap, map_in_processes
from nanochat_core.errors import DataError
from nanochat_core.logs import Progress
from nanochat_core.tokenizer.tokenizer import Tokenizer

TOKENS_FILE = "tokens.json"
COPIED_BYTES = 2**20
NOTHING = PieceCounts(0, 0, 0, 0)
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

    `shards` and `tokenizer` are folders of those artifacts. Pieces of shards are tokenized in
    parallel, as `mapped` does it, and joined in order; the files do not depend on that.
    """
    index, loaded = ShardIndex.load(shards), Tokenizer.load(tokenizer)
    names = (*index.train, index.validation)
    output.mkdir(parents=True, exist_ok=True)
    work = Work(tokenizer, loaded.identity, output)
    pieces = work.pieces([shards / name for name in names], workers=workers)
    counted: dict[str, PieceCounts] = {}
    told = _Told(progress, pieces)
    enough = enough_workers(pieces, workers)
    results: Iterator[PieceCounts] = mapped(tokenize, pieces, workers=enough)
    for piece, counts in zip(pieces, results, strict=True):
        _join(piece)
        stem = piece.shard.stem
        before = counted.get(stem, NOTHING)
        counted[stem] = PieceCounts(*(a + b for a, b in zip(before, counts, strict=True)))
        told.add(piece, counts)
    token_index = TokenIndex(
        dtype=_dtype_for(loaded.vocab_size),
        vocab_size=loaded.vocab_size,
        bos_id=loaded.bos_id,
        train=tuple(Path(name).stem for name in index.train),
        validation=Path(index.validation).stem,
        counts={
            stem: ShardCounts(documents=counts.documents, tokens=counts.tokens)
            for stem, counts in counted.items()
        },
    )
    text = json.dumps(token_index.model_dump(mode="json"), indent=1)
    (output / TOKENS_FILE).write_text(text, encoding="utf-8")
    return _stage_output(token_index, counted.values())


class _Told:
    """Tells how far the work is, in megabytes of text, and how fast it goes."""

    def __init__(self, progress: Progress, pieces: Sequence[Piece]) -> None:
        self.progress = progress
        progress.total = _megabytes(sum(piece.text_bytes for piece in pieces))
        progress.unit = "MB of text"
        self._started, self._planned, self._done, self._tokens = time.monotonic(), 0, 0, 0

    def add(self, piece: Piece, counts: PieceCounts) -> None:
        """One more piece is done."""
        self._planned += piece.text_bytes
        self._done += counts.text_bytes
        self._tokens += counts.tokens
        rate = self._done / 1e6 / max(time.monotonic() - self._started, 1e-6)
        self.progress.update(
            min(_megabytes(self._planned), self.progress.total),
            f"{piece.shard.stem}: {self._tokens:,} tokens, {rate:.1f} MB/s",
        )


def _megabytes(size: int) -> int:
    return -(-size // 10**6)


def _join(piece: Piece) -> None:
    """Add the files of a later piece of a shard to those of its first one."""
    if not piece.suffix:
        return
    for kind in ("tokens", "lengths"):
        added = piece.file(kind)
        with added.open("rb") as source, piece.file(kind, suffix="").open("ab") as target:
            shutil.copyfileobj(source, target, COPIED_BYTES)
        added.unlink()


def _stage_output(index: TokenIndex, counted: Iterable[PieceCounts]) -> StageOutput:
    files: dict[str, Role] = {TOKENS_FILE: "result"}
    for name in index.counts:
        files[f"{name}.tokens.bin"] = "result"
        files[f"{name}.lengths.bin"] = "result"
    train, validation = index.total(index.train), index.total((index.validation,))
    _, tokens, characters, text_bytes = (sum(numbers) for numbers in zip(*counted, strict=True))
    metrics: dict[str, Any] = {
        "train_tokens": train.tokens,
        "train_documents": train.documents,
        "validation_tokens": validation.tokens,
        "characters_per_token": round(characters / tokens, 3),
        "bytes_per_token": round(text_bytes / tokens, 3),
    }
    return StageOutput(files=files, metrics=metrics)
