"""Tiny token folders and texts for the tests of the data part."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nanochat_core.data.token_files import TOKENS_FILE, ShardCounts, TokenIndex
from nanochat_core.logs import Progress

BOS = 1


def no_progress() -> Progress:
    return Progress(None, 0, "parts")


def write_tokens(folder: Path, shards: Sequence[Sequence[int]]) -> Path:
    """A tokens artifact of documents with these lengths; token values count up from 2.

    The last shard is the validation shard. Values are unique over a folder (below 65,536).
    """
    folder.mkdir(parents=True, exist_ok=True)
    value = 2
    counts = {}
    names = [f"shard_{number:05d}" for number in range(len(shards))]
    for name, lengths in zip(names, shards, strict=True):
        flat: list[int] = []
        for length in lengths:
            flat += [BOS, *range(value, value + length - 1)]
            value += length - 1
        assert value < 1 << 16
        np.array(flat, dtype="<u2").tofile(folder / f"{name}.tokens.bin")
        np.array(lengths, dtype="<u4").tofile(folder / f"{name}.lengths.bin")
        counts[name] = ShardCounts(documents=len(lengths), tokens=len(flat))
    index = TokenIndex(
        dtype="uint16",
        vocab_size=1 << 16,
        bos_id=BOS,
        train=tuple(names[:-1]),
        validation=names[-1],
        counts=counts,
    )
    (folder / TOKENS_FILE).write_text(index.model_dump_json(), encoding="utf-8")
    return folder


def random_lengths(seed: int, count: int, *, mean: float = 3.0) -> list[int]:
    """Lengths of documents, mostly short, some far longer than a row of the tests."""
    generator = np.random.default_rng(seed)
    return np.clip(generator.lognormal(mean, 1.0, count), 2, 400).astype(int).tolist()
