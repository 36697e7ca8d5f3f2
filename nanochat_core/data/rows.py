"""Training rows: which tokens row number r holds is a function of integers and document lengths.

Rows are packed and mixed inside blocks of `block_shards` shards, blocks come in shard order, and
a row number beyond one epoch continues in the next one with other keys. So a longer run's order
extends a shorter one's, a resume needs one integer, and the number of readers changes nothing.

Shapes: R rows, T sequence_len. A row holds T + 1 tokens: inputs are the first T, targets the
last T; places that no document fills are 0 as input and -1 as target.
"""

import math
from bisect import bisect_right
from collections import OrderedDict
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat_core.data.order import permute
from nanochat_core.data.packing import Packing, RowTable, count_rows, pack
from nanochat_core.data.token_files import TokenIndex, TokenShard
from nanochat_core.errors import ConfigError

IntArray = NDArray[np.int64]
IGNORED_TARGET = -1
CACHED_BLOCKS = 2
CACHED_ORDERS = 4


class Block:
    """Shards whose documents are packed into rows together."""

    def __init__(self, shards: list[TokenShard], row_tokens: int, bos_id: int) -> None:
        self.shards, self.row_tokens, self.bos_id = shards, row_tokens, bos_id
        totals = [int(shard.lengths.sum()) for shard in shards]
        self._firsts = list(accumulate(totals[:-1], initial=0))

    @cached_property
    def document_lengths(self) -> IntArray:
        """Tokens of every document of the block, in order."""
        return np.concatenate([shard.lengths for shard in self.shards])

    def gather(self, table: RowTable, rows: IntArray) -> tuple[IntArray, IntArray]:
        """Inputs and targets (R, T) of these rows of the block's table."""
        tokens = np.full((len(rows), self.row_tokens), IGNORED_TARGET, dtype=np.int64)
        pieces = table.pieces
        firsts, lasts = table.pointers[rows].tolist(), table.pointers[rows + 1].tolist()
        for tokens_of_row, first, last in zip(tokens, firsts, lasts, strict=True):
            at = 0
            for start, length, continued in zip(
                pieces.starts[first:last].tolist(),
                pieces.lengths[first:last].tolist(),
                pieces.continued[first:last].tolist(),
                strict=True,
            ):
                if continued:
                    tokens_of_row[at] = self.bos_id
                    at += 1
                tokens_of_row[at : at + length] = self._run(start, length)
                at += length
        return np.maximum(tokens[:, :-1], 0), tokens[:, 1:].copy()

    def _run(self, start: int, length: int) -> NDArray[np.unsignedinteger]:
        shard = bisect_right(self._firsts, start) - 1
        first = start - self._firsts[shard]
        return self.shards[shard].tokens[first : first + length]


class TrainRows:
    """Rows of the train shards of a tokens artifact, in the order in which training reads them."""

    def __init__(
        self, folder: Path, *, sequence_len: int, packing: Packing, block_shards: int, seed: int
    ) -> None:
        self.index = TokenIndex.load(folder)
        self.sequence_len, self.packing, self.seed = sequence_len, packing, seed
        shards = [TokenShard(folder, name, self.index.dtype) for name in self.index.train]
        self._blocks = [
            Block(shards[i : i + block_shards], sequence_len + 1, self.index.bos_id)
            for i in range(0, len(shards), block_shards)
        ]
        self._tables: OrderedDict[int, RowTable] = OrderedDict()
        self._orders: OrderedDict[tuple[int, int], IntArray] = OrderedDict()

    @cached_property
    def block_first_rows(self) -> IntArray:
        """First row of every block within an epoch, and at the end the rows of one epoch."""
        counts = [
            count_rows(block.document_lengths, self.sequence_len + 1, self.packing)
            for block in self._blocks
        ]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return int(self.block_first_rows[-1])

    def read(self, first_row: int, count: int) -> tuple[IntArray, IntArray]:
        """Inputs and targets, both int64 (count, T), of rows [first_row, first_row + count)."""
        if first_row < 0 or count < 1:
            raise ConfigError(
                f"asked for {count} rows from row {first_row}; expected one or more from 0 on"
            )
        parts = []
        row, stop = first_row, first_row + count
        while row < stop:
            epoch, within = divmod(row, self.num_rows)
            block = int(np.searchsorted(self.block_first_rows, within, side="right")) - 1
            last = min(stop - row, int(self.block_first_rows[block + 1]) - within)
            parts.append(self._read_block(epoch, block, within, last))
            row += last
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _read_block(
        self, epoch: int, block: int, within: int, count: int
    ) -> tuple[IntArray, IntArray]:
        first = within - int(self.block_first_rows[block])
        rows = self._order(epoch, block)[first : first + count]
        return self._blocks[block].gather(self._table(block), rows)

    def _order(self, epoch: int, block: int) -> IntArray:
        """Rows of the block's table in the order of this epoch; kept, since reads are small."""
        if (epoch, block) not in self._orders:
            count = int(self.block_first_rows[block + 1] - self.block_first_rows[block])
            positions = np.arange(count, dtype=np.int64)
            self._orders[epoch, block] = permute(
                positions, count, seed=self.seed, epoch=epoch, block=block
            )
            while len(self._orders) > CACHED_ORDERS:
                self._orders.popitem(last=False)
        return self._orders[epoch, block]

    def _table(self, block: int) -> RowTable:
        if block not in self._tables:
            lengths = self._blocks[block].document_lengths
            self._tables[block] = pack(lengths, self.sequence_len + 1, self.packing)
            while len(self._tables) > CACHED_BLOCKS:
                self._tables.popitem(last=False)
        self._tables.move_to_end(block)
        return self._tables[block]

    def check_epochs(self, rows_needed: int, max_epochs: float, *, rows_per_step: int) -> None:
        """Refuse (ConfigError) a run that would read the shards more than `max_epochs` times."""
        rows_allowed = math.floor(self.num_rows * max_epochs)
        if rows_needed <= rows_allowed:
            return
        shards = len(self.index.train)
        needed = math.ceil(rows_needed * shards / (self.num_rows * max_epochs))
        enough = math.ceil(100 * rows_needed / self.num_rows) / 100
        raise ConfigError(
            f"training needs {rows_needed:,} rows of {self.sequence_len} tokens, "
            f"{rows_needed / self.num_rows:.2f} epochs of the {shards} train shards "
            f"({self.num_rows:,} rows), but pretrain.data.max_epochs={max_epochs:g}. Give "
            f"more text (about {needed} such train shards), or else set pretrain.num_iterations "
            f"to at most {rows_allowed // rows_per_step} or pretrain.data.max_epochs to "
            f"{enough:g} or more"
        )
