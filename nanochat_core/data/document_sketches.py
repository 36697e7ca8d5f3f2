"""Documents that are like an earlier one, in bounded memory and in any script.

A document is the set of its runs of 16 characters (lower-case, white space as one space): words
would make no runs of a script without spaces. Of two sets, one-permutation hashing keeps a
number for each of 64 parts of the hash range (Li, Owen and Zhang, arXiv:1208.1259; empty parts
take that of the next, Shrivastava and Li, arXiv:1406.4784). The share of equal numbers estimates
the share of runs that two documents have in common, with a standard error of 0.06 at most. Only
documents with an equal band of four numbers are compared (banded minhash, Broder 1997).
"""

import numpy as np
from numpy.typing import NDArray

RUN_CHARACTERS = 16
NUMBERS = 64
BANDS = 16
MIN_LIKENESS = 0.7
"""Of the runs of both together, the share that both have: from here on they are near-duplicates."""
REMEMBERED = 1 << 20
"""Documents of which sketches are kept (192 MiB with the bands); older ones are forgotten."""

Numbers = NDArray[np.uint64]
_MULTIPLIER = 0x9E3779B97F4A7C15
_PART_SHIFT = np.uint64(64 - NUMBERS.bit_length() + 1)
_BEGINS = np.arange(NUMBERS, dtype=np.uint64) << _PART_SHIFT
_BAND_FACTORS = np.array([pow(_MULTIPLIER, n, 1 << 64) for n in (1, 3, 5, 7)], dtype=np.uint64)
_STEP = np.uint64(0xD1B54A32D192ED03)


def _mix(values: Numbers) -> Numbers:
    """Scramble 64-bit integers (the finaliser of SplitMix64; unsigned overflow is meant)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _run_hashes(text: str) -> Numbers:
    """A hash of every run of 16 characters; a shorter text has one."""
    normal = " ".join(text.lower().split()).ljust(RUN_CHARACTERS)
    hashes = np.frombuffer(normal.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    width = 1
    while width < RUN_CHARACTERS:
        factor = np.uint64(pow(_MULTIPLIER, width, 1 << 64))
        hashes = hashes[:-width] * factor + hashes[width:]
        width *= 2
    return _mix(hashes)


def sketch(text: str) -> Numbers:
    """64 numbers; two texts agree in about the share of runs that they have in common."""
    hashes = np.sort(_run_hashes(text))
    first = np.searchsorted(hashes, _BEGINS)
    is_filled = np.diff(first, append=len(hashes)) > 0
    filled = np.flatnonzero(is_filled)
    numbers = np.arange(NUMBERS)
    source = filled[np.searchsorted(filled, numbers) % len(filled)]
    # The distance goes in, or two texts with few runs would agree in whole stretches or not at all.
    return hashes[first[source]] + ((source - numbers) % NUMBERS).astype(np.uint64) * _STEP


class SeenDocuments:
    """Sketches of the documents so far, to tell near-duplicates from news."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        assert remembered & (remembered - 1) == 0, f"{remembered} is no power of two"
        self._count, self._remembered = 0, remembered
        self._sketches = np.zeros((remembered, NUMBERS), dtype=np.uint16)
        # Band and slot -> the newest document there, counted from 1.
        self._newest = np.zeros((BANDS, remembered), dtype=np.uint32)

    @property
    def num_bytes(self) -> int:
        """Memory, once all of it is in use."""
        return self._sketches.nbytes + self._newest.nbytes

    def keep_new(self, text: str) -> bool:
        """Whether a text is news; if so it counts as seen from now on."""
        numbers = sketch(text)
        bands = _mix((numbers.reshape(BANDS, -1) * _BAND_FACTORS).sum(axis=1, dtype=np.uint64))
        slots = (bands & np.uint64(self._remembered - 1)).astype(np.int64)
        # Low bits: the smallest of many hashes has high bits of zero.
        short = numbers.astype(np.uint16)
        every = np.arange(BANDS)
        found = np.unique(self._newest[every, slots])
        earlier = found[found > 0].astype(np.int64) - 1
        if len(earlier):
            equal = (self._sketches[earlier % self._remembered] == short).mean(axis=1)
            if equal.max() >= MIN_LIKENESS:
                return False
        self._sketches[self._count % self._remembered] = short
        self._count += 1
        self._newest[every, slots] = self._count
        return True
