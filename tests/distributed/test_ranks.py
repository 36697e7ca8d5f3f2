"""The world of one, choosing a device, and collectives that do nothing there."""

import pytest
import torch

from nanochat_core.distributed import collectives
from nanochat_core.distributed.ranks import Ranks, init_ranks, pick_device
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
