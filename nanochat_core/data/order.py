"""The order in which rows are read: a keyed bijection of integers, with no state and no table.

A Feistel network over the smallest power of four that holds `count`, with cycle walking: values
that fall outside are sent through again until they fall inside (Black and Rogaway, "Ciphers with
arbitrary finite domains", 2002). Four rounds make a strong permutation when the rounds are random
functions (Luby and Rackoff, 1988); two more are free here.
"""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6


def round_keys(seed: int, epoch: int, block: int) -> NDArray[np.uint64]:
    """Keys of one block in one epoch; another epoch, block or seed has unrelated ones."""
    text = f"row order, seed {seed}, epoch {epoch}, block {block}".encode()
    return np.frombuffer(blake2b(text, digest_size=8 * ROUNDS).digest(), dtype="<u8").astype(
        np.uint64
    )


def _mix(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Scramble 64-bit integers (the finaliser of SplitMix64; unsigned overflow is meant)."""
    x = values + key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _feistel(
    values: NDArray[np.uint64], keys: NDArray[np.uint64], half_bits: int
) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right, key) & mask)
    return (left << shift) | right


def permute(
    positions: NDArray[np.int64], count: int, *, seed: int, epoch: int, block: int
) -> NDArray[np.int64]:
    """Rows that stand at `positions` (each in [0, count)) of one block's order in one epoch."""
    if count < 2:
        return positions.copy()
    half_bits = ((count - 1).bit_length() + 1) // 2
    keys = round_keys(seed, epoch, block)
    values = _feistel(positions.astype(np.uint64), keys, half_bits)
    while (outside := values >= count).any():
        values[outside] = _feistel(values[outside], keys, half_bits)
    return values.astype(np.int64)
