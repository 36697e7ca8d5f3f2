"""Validation rows: the reference's policy (RECIPE section 4), one pass over the last shard."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat_core.data.packing import pack_crop
from nanochat_core.data.rows import Block
from nanochat_core.data.token_files import TokenIndex, TokenShard
from nanochat_core.errors import DataError

IntArray = NDArray[np.int64]


class ValidationRows:
    """Rows of sequence_len + 1 tokens in one stream, whatever the number of readers.

    At most `max_tokens` targets, at least one row; the last row of a small shard may end in
    places that do not count (input 0, target -1).
    """

    def __init__(self, folder: Path, *, sequence_len: int, max_tokens: int) -> None:
        index = TokenIndex.load(folder)
        shard = TokenShard(folder, index.validation, index.dtype)
        if not len(shard.lengths):
            raise DataError(f"the validation shard {index.validation} in {folder} has no document")
        self.sequence_len = sequence_len
        self._block = Block([shard], sequence_len + 1, index.bos_id)
        self._table = pack_crop(shard.lengths, sequence_len + 1)
        self.num_rows = min(self._table.num_rows, max(1, max_tokens // sequence_len))

    def read(self, first_row: int, count: int) -> tuple[IntArray, IntArray]:
        """Inputs and targets, int64 (n, sequence_len); n < count where the rows end."""
        rows = np.arange(first_row, min(first_row + count, self.num_rows), dtype=np.int64)
        return self._block.gather(self._table, rows)

    def batches(
        self, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[IntArray, IntArray]]:
        """Batches of up to `batch_size` rows; of every `world_size` batches in turn one is ours."""
        for first in range(rank * batch_size, self.num_rows, world_size * batch_size):
            yield self.read(first, batch_size)
