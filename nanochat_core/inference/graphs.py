"""Decoding with CUDA graphs: one recorded launch for a whole step instead of hundreds.

A graph repeats the same work on the same memory, so everything that changes from step to step lies
in tensors: tokens, positions, and through them masks. Batches and lengths are rounded up to sizes
of which each is recorded once. Shapes: B rows of a bucket, S slots, H query heads, G key heads, D
head dim, R rotation planes, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanochat_core.inference.cached_model import CachedModel
from nanochat_core.inference.row_cache import RowCache

SMALLEST_LENGTH = 256
WARM_UPS = 3
"""Before a recording: libraries set themselves up in the first calls (PyTorch, CUDA graphs)."""


class StaticDecodePass:
    """`DecodePass` of the first B rows in fixed shapes, reading its positions from a tensor.

    Rows beyond those in use are at the spare slot at the end of theirs, where nothing is lost.
    """

    last_B: torch.Tensor | None = None

    def __init__(
        self, inputs_3B: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, length: int
    ) -> None:
        self.tokens_N, self.before_N, self._positions_B = inputs_3B.unbind()
        self.shape = (inputs_3B.size(1), 1)
        self._keys_LRGSD, self._values_LRGSD, self._length = keys, values, length
        self._rows_B = torch.arange(inputs_3B.size(1), device=inputs_3B.device)
        self._masks: dict[int, torch.Tensor] = {}

    def rotary(
        self, cos_TR: torch.Tensor, sin_TR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The position of each row."""
        # The spare slot may lie beyond the tables; what is computed there, nobody reads.
        positions_B = self._positions_B.clamp(max=cos_TR.size(0) - 1)
        return cos_TR[positions_B][:, None, None], sin_TR[positions_B][:, None, None]

    def attend(
        self,
        block: int,
        q_BTHD: torch.Tensor,
        k_BTGD: torch.Tensor,
        v_BTGD: torch.Tensor,
        *,
        window: int,
    ) -> torch.Tensor:
        """Over the first S slots of every row, of which a mask leaves those that it may see."""
        rows = self.shape[0]
        keys_BGSD, values_BGSD = self._keys_LRGSD[block, :rows], self._values_LRGSD[block, :rows]
        keys_BGSD[self._rows_B, :, self._positions_B] = k_BTGD[:, 0]
        values_BGSD[self._rows_B, :, self._positions_B] = v_BTGD[:, 0]
        attended_BHTD = F.scaled_dot_product_attention(
            q_BTHD.transpose(1, 2),
            keys_BGSD[:, :, : self._length],
            values_BGSD[:, :, : self._length],
            attn_mask=self._mask(window, q_BTHD.dtype),
            enable_gqa=q_BTHD.size(2) != k_BTGD.size(2),
        )
        return attended_BHTD.transpose(1, 2)

    def _mask(self, window: int, dtype: torch.dtype) -> torch.Tensor:
        """What to add to the scores (B, 1, 1, S); the same in every block of a window."""
        if window not in self._masks:
            slots_S = torch.arange(self._length, device=self._positions_B.device)
            behind_BS = self._positions_B.clamp(max=self._length - 1)[:, None] - slots_S
            hidden_BS = (behind_BS < 0) | (behind_BS > window)
            mask_BS = torch.zeros(hidden_BS.shape, dtype=dtype, device=hidden_BS.device)
            self._masks[window] = mask_BS.masked_fill(hidden_BS, float("-inf"))[:, None, None]
        return self._masks[window]


def static_decode(
    model: CachedModel, inputs_3B: torch.Tensor, cache: RowCache, length: int
) -> torch.Tensor:
    """Logits (B, V) before the cap, for tokens, tokens before and positions (3, B)."""
    step = StaticDecodePass(inputs_3B, cache.keys_LRGSD, cache.values_LRGSD, length)
    return model.forward(step)


def bucket(count: int, smallest: int = 1) -> int:
    """The power of two that a size is rounded up to."""
    return max(smallest, 1 << (count - 1).bit_length())


@dataclass
class _Recording:
    """One recorded step: where its inputs are put, and where its logits come to lie."""

    inputs_3B: torch.Tensor
    graph: torch.cuda.CUDAGraph
    logits_BV: torch.Tensor


class GraphedDecode:
    """Decodes the first rows of a cache by recorded steps; records a size when it first comes."""

    def __init__(self, model: CachedModel, cache: RowCache, *, is_compiled: bool) -> None:
        self._model, self._cache = model, cache
        self._decode: Callable[..., torch.Tensor] = static_decode
        if is_compiled:
            self._decode = torch.compile(static_decode, fullgraph=True, dynamic=False)
        self._recordings: dict[tuple[int, int], _Recording] = {}
        self._generation = -1
        self._pool = torch.cuda.graph_pool_handle()

    def decode(
        self, tokens: Sequence[int], before: Sequence[int], positions: Sequence[int]
    ) -> torch.Tensor:
        """Logits (rows in use, V); they are overwritten by the next step."""
        rows = bucket(len(tokens))
        length = bucket(max(positions) + 1, SMALLEST_LENGTH)
        self._cache.grow(rows, length)
        spare = [self._cache.capacity] * (rows - len(tokens))
        filled = [[*tokens, *[0] * len(spare)], [*before, *[0] * len(spare)], [*positions, *spare]]
        inputs_3B = torch.tensor(filled)
        recording = self._recording(inputs_3B, length)
        recording.inputs_3B.copy_(inputs_3B)
        recording.graph.replay()
        return recording.logits_BV[: len(tokens)]

    def _recording(self, inputs_3B: torch.Tensor, length: int) -> _Recording:
        if self._cache.generation != self._generation:
            # A recording works on the memory that there was.
            self._recordings.clear()
            self._generation = self._cache.generation
        key = (inputs_3B.size(1), length)
        if key not in self._recordings:
            self._recordings[key] = self._record(inputs_3B.to(self._model.device), length)
        return self._recordings[key]

    def _record(self, inputs_3B: torch.Tensor, length: int) -> _Recording:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        # Repeated, a step stores the same keys and values at the same place.
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._decode(self._model, inputs_3B, self._cache, length)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits_BV = self._decode(self._model, inputs_3B, self._cache, length)
        return _Recording(inputs_3B, graph, logits_BV)
