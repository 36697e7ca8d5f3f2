"""A state saved by any number of ranks is restored by any other; the ranks are made one by one."""

import functools
import hashlib
import secrets
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.optim.groups import StateShard
from nanochat_core.optim.muon_adamw import MuonAdamW
from nanochat_core.optim.recipe import OptimizerRecipe
from nanochat_core.training.checkpoint_files import Checkpoint, newest_checkpoint
from nanochat_core.training.checkpoints import CheckpointWriter
from nanochat_core.training.groups import build_groups
from nanochat_core.training.loss_scale import LossScale
from nanochat_core.training.state import TrainState

pytestmark = pytest.mark.distributed

WORLDS = (1, 2, 4, 8)
IDENTITY = "recipe"
# Three blocks and a width of 40: stacks and rows that eight ranks do not divide.
CONFIG = ModelConfig(
    sequence_len=16, vocab_size=72, n_layer=3, n_head=1, n_kv_head=1, n_embd=40, window_pattern="L"
)


def state_of(rank: int, world_size: int) -> TrainState:
    model = GPT(CONFIG, torch.float16)
    model.init_weights(1)
    groups = build_groups(
        model.named_parameters(),
        OptimizerRecipe(),
        batch_lr_scale=1.0,
        width_lr_scale=1.0,
        muon_weight_decay=0.1,
    )
    ranks = Ranks(rank, world_size, rank, torch.device("cpu"))
    optimizer = MuonAdamW(groups, ranks, compute_dtype=torch.float16)
    return TrainState(model, optimizer, loss_scale=LossScale.for_float16())


@functools.cache
def content(name: str, full_shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """What the tensor of that name holds in these tests."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(full_shape, generator=generator).to(dtype)


def fill(state: TrainState, rank: int, world_size: int) -> None:
    for shard in state.shards(rank, world_size):
        whole = content(shard.name, shard.full_shape, shard.tensor.dtype)
        with torch.no_grad():
            if shard.full_shape:
                stop = shard.start + shard.tensor.shape[0]
                shard.tensor.copy_(whole[shard.start : stop])
            else:
                shard.tensor.copy_(whole)
    state.step, state.training_seconds = 7, 1.5
    state.optimizer.steps = 5
    state.loss_scale.scale, state.loss_scale.good_steps = 2.0**13, 3


def digest(tensors: dict[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def joined(shards: Iterable[StateShard]) -> dict[str, torch.Tensor]:
    parts: dict[str, list[StateShard]] = {}
    for shard in shards:
        parts.setdefault(shard.name, []).append(shard)
    whole = {}
    for name, pieces in parts.items():
        pieces.sort(key=lambda shard: shard.start)
        tensors = [shard.tensor.detach() for shard in pieces]
        whole[name] = torch.cat(tensors) if tensors[0].ndim else tensors[0]
        assert whole[name].shape == pieces[0].full_shape
    return whole


def save(folder: Path, world_size: int) -> None:
    token = secrets.token_hex(4)
    for rank in reversed(range(world_size)):
        state = state_of(rank, world_size)
        fill(state, rank, world_size)
        writer = CheckpointWriter(
            folder, identity=IDENTITY, token=token, rank=rank, world_size=world_size
        )
        writer.save(state.step, state.shards(rank, world_size), state.scalars(), {})
        writer.wait()


def restored(checkpoint: Checkpoint, world_size: int) -> list[TrainState]:
    states = [state_of(rank, world_size) for rank in range(world_size)]
    for state in states:
        state.restore(checkpoint)
    return states


@pytest.mark.parametrize("saved_by", WORLDS)
def test_any_world_restores_what_any_other_saved(tmp_path: Path, saved_by: int) -> None:
    save(tmp_path, saved_by)
    checkpoint = newest_checkpoint(tmp_path, IDENTITY)
    assert checkpoint is not None
    names = checkpoint.names
    expected = digest({name: content_of(checkpoint, name) for name in names})
    assert digest({name: checkpoint.read(name) for name in names}) == expected
    for world_size in WORLDS:
        states = restored(checkpoint, world_size)
        shards = [s for rank, state in enumerate(states) for s in state.shards(rank, world_size)]
        assert digest(joined(shards)) == expected, f"{saved_by} to {world_size}"
        for state in states:
            assert state.step == 7
            assert state.scalars() == checkpoint.scalars
            assert (state.loss_scale.scale, state.loss_scale.good_steps) == (2.0**13, 3)
            assert (state.optimizer.steps, state.training_seconds) == (5, 1.5)
            # The weights are whole on every rank.
            for name, weight in state.model.state_dict().items():
                full = content(f"model.{name}", tuple(weight.shape), weight.dtype)
                assert torch.equal(weight, full), name


def content_of(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return content(name, checkpoint.shape(name), checkpoint.read(name).dtype)
