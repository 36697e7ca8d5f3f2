"""What a job asks of torch before it trains."""

from collections.abc import Iterator

import pytest
import torch

from nanochat_core.config.execution import Execution
from nanochat_core.training.torch_setup import set_up_torch


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    threads, is_filling = torch.get_num_threads(), torch.utils.deterministic
    was_filling = is_filling.fill_uninitialized_memory
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(was_deterministic)
    is_filling.fill_uninitialized_memory = was_filling


def test_deterministic_jobs_do_not_write_over_new_memory_first() -> None:
    set_up_torch(Execution(threads=2), torch.device("cpu"))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.empty(1000).isnan().all()
