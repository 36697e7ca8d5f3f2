"""Several sources dealt to shards so that stated shares of the bytes hold everywhere.

Every shard keeps an account of its own: the next document goes to the shard with the fewest
bytes, from the source of which that shard is owed most (largest deficit first, as in sharing a
line fairly by deficits). At every document of every shard, a source has at most the length of
one document more than its share, and n sources together owe no more than n - 1 such lengths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import NamedTuple

from nanochat_core.data.documents import SourceText, num_bytes


class Dealt(NamedTuple):
    """A document, from which part, and into which shard of its side."""

    shard: int
    part: int
    text: str


@dataclass(frozen=True)
class Part:
    """A source by name, its share of the bytes, and how often its text may come up."""

    name: str
    source: SourceText
    share: float = 1.0
    max_epochs: float = 1.0
    language: str = ""

    @property
    def train_quota(self) -> int:
        """Documents to train on at most, repetitions too; half an epoch is the first half."""
        return max(1, int(self.max_epochs * self.source.train.documents))


def shares(weights: Sequence[float]) -> list[float]:
    """Weights as shares of a whole."""
    total = sum(weights)
    return [weight / total for weight in weights]


class _Account:
    """What one shard has of each part."""

    def __init__(self, wanted: Sequence[float]) -> None:
        self._wanted = wanted
        self._bytes = [0] * len(wanted)
        self._total = 0

    def most_owed(self) -> int:
        """The part with the largest deficit; of equal ones the larger share, then the first."""
        owed = [
            (share * self._total - has, share)
            for share, has in zip(self._wanted, self._bytes, strict=True)
        ]
        return max(range(len(owed)), key=lambda part: (owed[part], -part))

    def add(self, part: int, size: int) -> None:
        self._bytes[part] += size
        self._total += size


def _train_texts(part: Part) -> Iterator[str]:
    """Documents to train on, from the start again after the last, up to the quota."""
    most, num_given = part.train_quota, 0
    while num_given < most:
        before = num_given
        for document in part.source.read(False):
            yield document.text
            num_given += 1
            if num_given == most:
                return
        if num_given == before:
            return
        if before == 0:
            # Published rows without text were counted, too, until they were read.
            most = min(most, int(part.max_epochs * num_given))


def _deal(
    texts: Sequence[Iterator[str]], wanted: Sequence[float], num_shards: int
) -> Iterator[Dealt]:
    """Deal until a shard is owed text of a part that has no more."""
    accounts = [_Account(wanted) for _ in range(num_shards)]
    sizes = [(0, shard) for shard in range(num_shards)]
    while True:
        size, shard = sizes[0]
        part = accounts[shard].most_owed()
        text = next(texts[part], None)
        if text is None:
            return
        added = num_bytes(text)
        accounts[shard].add(part, added)
        heapreplace(sizes, (size + added, shard))
        yield Dealt(shard, part, text)


def deal_train(parts: Sequence[Part], num_shards: int) -> Iterator[Dealt]:
    """The documents to train on."""
    return _deal([_train_texts(part) for part in parts], [p.share for p in parts], num_shards)


def deal_held_out(parts: Sequence[Part]) -> Iterator[Dealt]:
    """The documents that are held out, each at most once, for one shard."""
    texts = [(document.text for document in part.source.read(True)) for part in parts]
    return _deal(texts, [part.share for part in parts], 1)


def expected_train_bytes(parts: Sequence[Part]) -> int:
    """About how much can be dealt before the first part runs out."""
    return round(
        min(
            part.source.train.bytes
            * part.train_quota
            / max(1, part.source.train.documents)
            / part.share
            for part in parts
        )
    )
