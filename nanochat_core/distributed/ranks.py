"""The processes of one training run, as torchrun starts them, and the device of this one."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from nanochat_core.errors import ConfigError, UnknownNameError

logger = logging.getLogger(__name__)

# Long enough for the slowest rank's first compile (230 s and more were seen at depth 24).
COLLECTIVE_TIMEOUT_SECONDS = 600.0

# What gloo throws in a rank whose peer has died or hangs (torch 2.13: all of these were seen for
# broadcasts, reductions, gathers and exchanges); a mismatch of sizes is a bug, and not among them.
_GLOO_LOST_A_PEER = re.compile(
    r"gloo.*(Connection closed by peer|Connection reset by peer|Broken pipe|Connection refused"
    r"|Timed out waiting|timeout caused pair closure|connectFullMesh failed)",
    re.IGNORECASE | re.DOTALL,
)
# Errors of one rank's own that nccl reports as it reports a lost peer.
_NOT_THE_PEER = re.compile(r"out of memory|invalid usage|invalid argument", re.IGNORECASE)

DEVICES = ("auto", "cuda", "mps", "cpu")


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size`; a world of one has no process group."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @classmethod
    def single(cls, device: torch.device | str = "cpu") -> "Ranks":
        """A world of one process on `device`."""
        return cls(rank=0, world_size=1, local_rank=0, device=torch.device(device))

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that logs and writes shared files."""
        return self.rank == 0

    def close(self) -> None:
        """Leave the process group; nothing happens in a world of one or when called again."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def init_ranks(
    device: str = "auto",
    *,
    environ: Mapping[str, str] | None = None,
    timeout_seconds: float = COLLECTIVE_TIMEOUT_SECONDS,
) -> Ranks:
    """Join the process group that torchrun describes, or be a world of one without it.

    `device` is auto (cuda, then mps, then cpu), cuda, mps or cpu. The group speaks nccl on cuda,
    else gloo; a collective that waits longer than `timeout_seconds` raises an error that
    `tells_of_lost_rank` (gloo), or ends the process after a line in its log (nccl's watchdog).

    Raises:
        UnknownNameError: no such device.
        ConfigError: the device is not there, or cannot serve this many ranks.
    """
    # The launcher speaks to its processes through these variables only.
    environ = os.environ if environ is None else environ  # noqa: TID251
    rank = int(environ.get("RANK", "0"))
    world_size = int(environ.get("WORLD_SIZE", "1"))
    local_rank = int(environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device, local_rank=local_rank, world_size=world_size)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size > 1:
        is_cuda = chosen.type == "cuda"
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_seconds),
            device_id=chosen if is_cuda else None,
        )
    logger.info("rank %d of %d on %s", rank, world_size, chosen)
    return Ranks(rank, world_size, local_rank, chosen)


def pick_device(device: str = "auto", *, local_rank: int = 0, world_size: int = 1) -> torch.device:
    """The device of a process: what was asked for, or the best that this machine has.

    Raises:
        UnknownNameError: no such device.
        ConfigError: the device is not there, or cannot serve this many ranks.
    """
    if device not in DEVICES:
        raise UnknownNameError(f"device={device!r} is none of {', '.join(DEVICES)}")
    has_cuda = torch.cuda.is_available()  # noqa: TID251  the one place that probes hardware
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        # Metal has no collectives, so several ranks on a Mac run on its CPU.
        device = "cuda" if has_cuda else "mps" if has_mps and world_size == 1 else "cpu"
    if device == "cuda":
        return _cuda_device(local_rank, has_cuda)
    if device == "mps" and not has_mps:
        raise ConfigError("device=mps, but this machine has no Metal GPU; use device=cpu or auto")
    if device == "mps" and world_size > 1:
        raise ConfigError(f"device=mps serves one rank, not {world_size}; use ranks=1 or cpu")
    return torch.device(device)


def _cuda_device(local_rank: int, has_cuda: bool) -> torch.device:
    if not has_cuda:
        raise ConfigError("device=cuda, but torch sees no CUDA GPU here; use device=cpu or auto")
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise ConfigError(
            f"rank {local_rank} of this machine needs a GPU of its own, and there are {num_gpus}; "
            f"use ranks={num_gpus}"
        )
    return torch.device("cuda", local_rank)


def tells_of_lost_rank(error: BaseException) -> bool:
    """Whether an error of torch.distributed says that another rank is gone, or does not answer."""
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    if isinstance(error, kinds):
        return not _NOT_THE_PEER.search(str(error))
    return isinstance(error, RuntimeError) and bool(_GLOO_LOST_A_PEER.search(str(error)))
