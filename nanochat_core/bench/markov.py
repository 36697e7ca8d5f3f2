"""Made-up text that can be learnt: every token has a few followers, some likelier than others.

R rows, T sequence length, V vocabulary, K followers of a token.
"""

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FOLLOWER_ODDS = (0.5, 0.25, 0.125, 0.125)
ENTROPY_NATS = float(-sum(p * np.log(p) for p in FOLLOWER_ODDS))
"""The loss of a model that knows every follower and its odds; none can do better for long."""


class MarkovText:
    """Endless rows, any of which can be asked for: they follow from seed and step alone."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self.vocab_size, self.seed = vocab_size, seed
        generator = np.random.default_rng(seed)
        self.followers_VK = generator.integers(vocab_size, size=(vocab_size, len(FOLLOWER_ODDS)))

    def rows(self, step: int, num_rows: int, sequence_len: int) -> tuple[IntArray, IntArray]:
        """Inputs and targets, both int64 (R, T), of one step."""
        generator = np.random.default_rng((self.seed, step))
        limits = np.cumsum(FOLLOWER_ODDS)[:-1]
        chosen_RT = np.searchsorted(limits, generator.random((num_rows, sequence_len)), "right")
        tokens = np.empty((num_rows, sequence_len + 1), dtype=np.int64)
        tokens[:, 0] = generator.integers(self.vocab_size, size=num_rows)
        for column in range(sequence_len):
            tokens[:, column + 1] = self.followers_VK[tokens[:, column], chosen_RT[:, column]]
        return tokens[:, :-1], tokens[:, 1:]
