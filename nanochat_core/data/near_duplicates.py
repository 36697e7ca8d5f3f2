"""Near-duplicate paragraphs, by the runs of six words that they share with earlier ones."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 6
MAX_SHARED = 0.5
"""A paragraph with a larger share of shingles already seen is a near-duplicate."""

_MULTIPLIER = 0x9E3779B97F4A7C15


def stable_hash(text: str) -> int:
    """64 bits of a text, equal in every process and on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class Shingler:
    """Hashes of all runs of six words; remembers words, so use one for many texts."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}

    def _word_hash(self, word: str) -> int:
        value = self._words.get(word)
        if value is None:
            value = self._words[word] = stable_hash(word.strip(".,;:!?()'\"-").lower())
        return value

    def shingles(self, text: str) -> NDArray[np.uint64]:
        """Distinct hashes, sorted; a text of fewer than six words has one."""
        words = [self._word_hash(word) for word in text.split()]
        words += [0] * (SHINGLE_WORDS - len(words))
        hashes = np.array(words, dtype=np.uint64)
        count = len(hashes) - SHINGLE_WORDS + 1
        total = np.zeros(count, dtype=np.uint64)
        for offset in range(SHINGLE_WORDS):
            total = total * np.uint64(_MULTIPLIER) + hashes[offset : offset + count]
        return np.unique(total)


class SeenShingles:
    """What was read so far, to tell near-duplicates from news."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def is_near_duplicate(self, shingles: NDArray[np.uint64]) -> bool:
        """Whether more than half of the shingles were seen."""
        shared = sum(value in self._seen for value in shingles.tolist())
        return shared > MAX_SHARED * len(shingles)

    def add(self, shingles: NDArray[np.uint64]) -> None:
        """Remember the shingles of a text that was kept."""
        self._seen.update(shingles.tolist())

    def keep_new(self, shingles: NDArray[np.uint64]) -> bool:
        """Whether a text is news; if so it counts as seen from now on."""
        if self.is_near_duplicate(shingles):
            return False
        self.add(shingles)
        return True


def seen_in(all_shingles: Iterable[NDArray[np.uint64]]) -> SeenShingles:
    """A set that has seen all of these."""
    seen = SeenShingles()
    for shingles in all_shingles:
        seen.add(shingles)
    return seen
