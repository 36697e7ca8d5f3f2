"""The world of one, choosing a device, and collectives that do nothing there."""

import pytest
import torch

from nanochat_core.distributed import collectives
from nanochat_core.distributed.ranks import Ranks, init_ranks, pick_device, tells_of_lost_rank
from nanochat_core.errors import ConfigError, UnknownNameError


def test_without_a_launcher_there_is_one_rank_and_no_process_group() -> None:
    ranks = init_ranks("cpu", environ={})
    assert ranks == Ranks(0, 1, 0, torch.device("cpu"))
    assert ranks.is_main
    assert not torch.distributed.is_initialized()
    ranks.close()


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="'tpu' is none of auto, cuda, mps, cpu"):
        pick_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="no CUDA GPU here; use device=cpu or auto"):
        pick_device("cuda")


def test_auto_finds_a_device_for_any_number_of_ranks() -> None:
    assert pick_device("auto").type in {"cuda", "mps", "cpu"}
    assert pick_device("auto", world_size=2).type in {"cuda", "cpu"}


def test_collectives_of_one_rank_return_what_they_are_given() -> None:
    ranks, tensor = Ranks.single(), torch.arange(6.0).view(3, 2)
    assert torch.equal(collectives.all_gather(tensor, ranks).wait(), tensor)
    assert torch.equal(collectives.reduce_scatter(tensor, ranks).wait(), tensor)
    assert torch.equal(collectives.all_to_all(tensor, ranks).wait(), tensor)
    assert torch.equal(collectives.all_reduce(tensor, ranks).wait(), tensor)
    assert collectives.agree_any(True, ranks)
    assert not collectives.agree_any(False, ranks)
    assert collectives.gather_texts("hé", ranks) == ["hé"]
    assert collectives.sum_numbers([1.5, 2.0], ranks) == [1.5, 2.0]


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"
LOST = [
    # As torch 2.13 throws them when a rank is killed (first two) or stopped (last two).
    RuntimeError(f"{GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:58030. This is"),
    RuntimeError(f"{GLOO}pair.cc:537] Read error [127.0.0.1]:47783: Connection reset by peer."),
    RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation"),
    RuntimeError(f"{GLOO}unbound_buffer.cc:129] Timed out waiting 3000ms for send operation"),
    torch.distributed.DistStoreError("Timed out after 4 seconds waiting for clients. 1/2"),
    torch.distributed.DistNetworkError("The client socket has timed out after 600000ms"),
    torch.distributed.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:2251, remote process exited or there was a network "
        "error. ncclRemoteError: A call failed possibly due to a network error or a remote process"
    ),
]
OWN = [
    RuntimeError(f"{GLOO}pair.cc:454] op.preamble.length <= op.nbytes. 8 vs 4: mismatch"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    torch.distributed.DistBackendError("NCCL error: Cuda failure 2 'out of memory'"),
    ValueError("Connection closed by peer"),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[-40:])
def test_errors_about_another_rank_are_told_from_those_of_this_one(error: Exception) -> None:
    assert tells_of_lost_rank(error)


@pytest.mark.parametrize("error", OWN, ids=lambda error: str(error)[:40])
def test_an_error_of_this_rank_is_not_blamed_on_another(error: Exception) -> None:
    assert not tells_of_lost_rank(error)
