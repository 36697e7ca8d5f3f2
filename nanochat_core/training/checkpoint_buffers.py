"""The host memory that a save is copied to, laid out as the file that a thread then writes.

A safetensors file is eight bytes with the length of its header, the header (JSON: dtype, shape and
byte range of each tensor), and the bytes of all tensors without gaps.
"""

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from nanochat_core.errors import CheckpointError
from nanochat_core.optim.groups import StateShard

BLOCK_BYTES = 256 * 2**20
"""torch rounds pinned memory up to a power of two, so a large state in one piece could cost twice
its size; in pieces of a power of two nothing but the last one is rounded up."""

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class TensorFile:
    """A tensor file in memory; wait for `copied` before reading its pieces."""

    pieces: tuple[bytes | memoryview, ...]
    copied: Callable[[], None]


class HostBuffers:
    """Room for one save, allocated once; the next save of the same tensors writes over it."""

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._layout: tuple[object, ...] = ()
        self._order: list[int] = []
        self._header = b""
        self._blocks: list[Tensor] = []
        self._cuts: list[_Cut] = []
        self._targets: list[Tensor] = []

    def prepare(self, shards: Sequence[StateShard]) -> None:
        """Allocate for these tensors, unless the last ones were of the same shapes and dtypes."""
        layout = tuple(
            (key_of(s), s.tensor.shape, s.tensor.dtype, s.tensor.device.type) for s in shards
        )
        if layout == self._layout:
            return
        self._layout = ()
        # Widest first: each tensor then starts at a multiple of its item size, as readers need.
        self._order = sorted(
            range(len(shards)), key=lambda i: shards[i].tensor.element_size(), reverse=True
        )
        tensors = {key_of(shards[i]): shards[i].tensor for i in self._order}
        if len(tensors) != len(shards):
            raise CheckpointError("two tensors of a save have the same name and the same first row")
        ends = [0, *accumulate(tensor.nbytes for tensor in tensors.values())]
        self._header = _header(tensors, ends)
        is_pinned = any(tensor.is_cuda for tensor in tensors.values())
        self._blocks = _allocate(ends[-1], self._block_bytes, is_pinned)
        self._cuts = list(_cuts(ends, self._block_bytes))
        self._targets = [
            self._blocks[cut.block][cut.offset : cut.offset + cut.stop - cut.start]
            for cut in self._cuts
        ]
        self._layout = layout

    @torch.no_grad()
    def copy(self, shards: Sequence[StateShard]) -> TensorFile:
        """Start copying; on CUDA behind the work of the current stream, and nobody waits for it.

        What the current stream does later cannot change the copy. What was copied before is gone.
        """
        self.prepare(shards)
        flat = [shards[i].tensor.detach().reshape(-1).view(torch.uint8) for i in self._order]
        sources = [flat[cut.tensor][cut.start : cut.stop] for cut in self._cuts]
        devices = {shard.tensor.device for shard in shards if shard.tensor.is_cuda}
        if sources:
            torch._foreach_copy_(self._targets, sources, non_blocking=bool(devices))
        views = [block.numpy().data for block in self._blocks]
        return TensorFile((self._header, *views), _waiter(devices))


@dataclass(frozen=True)
class _Cut:
    """Bytes [start, stop) of a tensor, which lie in one block from `offset` on."""

    tensor: int
    start: int
    stop: int
    block: int
    offset: int


def key_of(shard: StateShard) -> str:
    """Name of a shard in its file."""
    return f"{shard.name}@{shard.start}"


def _cuts(ends: Sequence[int], block_bytes: int) -> Iterator[_Cut]:
    """Each tensor cut where blocks end; `ends` are its first byte and the ends of all tensors."""
    for tensor, (first, last) in enumerate(pairwise(ends)):
        position = first
        while position < last:
            block, offset = divmod(position, block_bytes)
            stop = min(last, (block + 1) * block_bytes)
            yield _Cut(tensor, position - first, stop - first, block, offset)
            position = stop


def _header(tensors: dict[str, Tensor], ends: Sequence[int]) -> bytes:
    entries = {
        key: {
            "dtype": _dtype_name(key, tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        for (key, tensor), (start, stop) in zip(tensors.items(), pairwise(ends), strict=True)
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Spaces up to a multiple of eight keep the tensors behind it aligned.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _dtype_name(key: str, dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAMES:
        known = ", ".join(str(known) for known in DTYPE_NAMES)
        raise CheckpointError(f"{key} is of dtype {dtype}; checkpoints hold {known}")
    return DTYPE_NAMES[dtype]


def _allocate(num_bytes: int, block_bytes: int, is_pinned: bool) -> list[Tensor]:
    starts = range(0, num_bytes, block_bytes)
    sizes = [min(block_bytes, num_bytes - start) for start in starts]
    # Zeros are written now, so that no later copy waits for the system to find the pages.
    return [torch.empty(size, dtype=torch.uint8, pin_memory=is_pinned).zero_() for size in sizes]


def _waiter(devices: set[torch.device]) -> Callable[[], None]:
    """A function, for another thread, that returns when the copies so far have arrived."""
    # A blocking event lets the thread sleep; the default one would keep a core busy.
    events = {
        device: torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch's
        for device in devices
    }
    for device, event in events.items():
        event.record(torch.cuda.current_stream(device))

    def wait() -> None:
        for device, event in events.items():
            # A new thread would make a context on the first GPU, which costs memory there.
            torch.cuda.set_device(device)
            event.synchronize()

    return wait
