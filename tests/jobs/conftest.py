"""One line of generated text for all job tests, and one thread, as jobs set it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from job_tools import PRETRAIN, make_line, make_spec

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.jobs import pretrain
from nanochat_core.jobs.common import StopRequest


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of shards, tokenizer and tokens, by name."""
    return make_line(tmp_path_factory.mktemp("line"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of several threads come in other orders."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base(line: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The line with a base model, trained by one rank in this process."""
    folder: Path = tmp_path_factory.mktemp("base")
    spec = make_spec(PRETRAIN, line, folder, station="pretrain")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pretrain.main(spec, Ranks.single(), StopRequest())
    torch.set_num_threads(before)
    return {**line, "pretrain": spec.output_folder}
