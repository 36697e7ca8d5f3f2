"""Runs the model over what the scheduler chose, and keeps count of what is cached.

Shapes: B sequences, V vocabulary.
"""

from collections.abc import Sequence

import torch

from nanochat_core.inference.cached_model import CachedModel
from nanochat_core.inference.graphs import GraphedDecode
from nanochat_core.inference.passes import DecodePass, PrefillPass
from nanochat_core.inference.row_cache import RowCache
from nanochat_core.inference.scheduler import Chunk
from nanochat_core.inference.sequences import ActiveSequence


class Runner:
    """The model and its cache; `is_exact` computes each sequence alone, as if there were no other.

    How a matrix product rounds depends on how many rows it has.
    """

    def __init__(
        self,
        model: CachedModel,
        cache: RowCache,
        *,
        is_exact: bool = False,
        graphs: GraphedDecode | None = None,
    ) -> None:
        self.model, self.cache, self.is_exact, self._graphs = model, cache, is_exact, graphs

    def prefill(self, chunk: Chunk) -> torch.Tensor:
        """Read on; logits (B, V) after the last token read of each sequence."""
        stop = chunk.start + chunk.num_columns
        step = PrefillPass(
            self.cache,
            [sequence.request.prompt[chunk.start : stop] for sequence in chunk.sequences],
            [self._before(sequence, chunk.start) for sequence in chunk.sequences],
            first_row=chunk.first_row,
            start=chunk.start,
            bands=self.model.bands,
            is_exact=self.is_exact,
        )
        logits_BV = self.model.forward(step)
        for sequence in chunk.sequences:
            sequence.num_cached = min(stop, len(sequence.request.prompt))
        return logits_BV

    def decode(self, sequences: Sequence[ActiveSequence]) -> torch.Tensor:
        """Take in the newest token of the sequences of the first rows; logits (B, V)."""
        tokens, before, positions = [], [], []
        for sequence in sequences:
            # Its prompt is read, so there are two tokens at least, and all but the last are cached.
            tokens.append(sequence.tokens[-1])
            before.append(sequence.tokens[-2])
            positions.append(sequence.num_cached)
        if self.is_exact:
            logits_BV = torch.cat(
                [
                    self._decode(tokens[i : i + 1], before[i : i + 1], positions[i : i + 1], i)
                    for i in range(len(sequences))
                ]
            )
        elif self._graphs is not None:
            logits_BV = self._graphs.decode(tokens, before, positions)
        else:
            logits_BV = self._decode(tokens, before, positions, 0)
        # Not before: a pass that failed has cached nothing.
        for sequence in sequences:
            sequence.num_cached += 1
        return logits_BV

    def _decode(
        self, tokens: list[int], before: list[int], positions: list[int], first_row: int
    ) -> torch.Tensor:
        step = DecodePass(
            self.cache, tokens, before, positions, first_row=first_row, is_exact=self.is_exact
        )
        return self.model.forward(step)

    def _before(self, sequence: ActiveSequence, position: int) -> int:
        """The token before a position, which the smear looks at."""
        return sequence.tokens[position - 1] if position else self.model.nothing
