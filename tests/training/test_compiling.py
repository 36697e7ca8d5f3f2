"""Regions: one graph for all blocks of a kind, the numbers of eager, less kept by checkpointing."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat_core.errors import ConfigError
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.training.compiling import Trunk, loss_function, trunk_function
from nanochat_core.training.step import LossFunction
from tests.model.builders import random_model, random_tokens, small_config

pytestmark = [  # torch itself does these
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
by_its_time = pytest.mark.distributed  # it traces a whole model
COLD_COMPILE = Path(__file__).parent / "cold_compile.py"


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    """Graphs are kept by the process, for whatever function has the same code."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def kinds_of_blocks(config: ModelConfig) -> set[tuple[int, bool]]:
    return {(w, config.has_value_embedding(i)) for i, w in enumerate(config.windows)}


def run_backward(trunk: Trunk, config: ModelConfig) -> None:
    trunk(random_tokens(config, 2, 9)).square().sum().backward()


@by_its_time
def test_all_blocks_of_a_kind_share_a_graph_in_models_of_any_depth() -> None:
    shallow, deep = small_config(n_layer=4), small_config(n_layer=8)
    kinds = kinds_of_blocks(shallow)
    assert len(kinds) == 3
    assert kinds_of_blocks(deep) == kinds
    run_backward(trunk_function(random_model(shallow), "blocks", compiler="eager"), shallow)
    assert num_graphs() == len(kinds) + 2
    # Neither the weights of 8 other blocks, nor where they are, nor a second step, nor blocks that
    # run again in backward.
    model = random_model(deep, seed=3)
    for checkpoints in (False, True):
        trunk = trunk_function(
            model, "blocks", checkpoint_activations=checkpoints, compiler="eager"
        )
        run_backward(trunk, deep)
        assert num_graphs() == len(kinds) + 2


@by_its_time
def test_blocks_in_fp8_are_a_kind_of_their_own() -> None:
    config = small_config(n_layer=2, n_embd=128, window_pattern="L")
    model = random_model(config, dtype=torch.bfloat16)
    trunk = trunk_function(model, "blocks", compiler="eager")
    run_backward(trunk, config)
    before = num_graphs()
    model.use_fp8_training()
    run_backward(trunk, config)
    assert num_graphs() == before + len(kinds_of_blocks(config))


@by_its_time
def test_the_scope_model_is_one_graph() -> None:
    config = small_config(n_layer=3)
    run_backward(trunk_function(random_model(config), "model", compiler="eager"), config)
    assert num_graphs() == 1


def test_a_row_that_is_too_long_is_refused_by_compiled_trunks_too() -> None:
    model = random_model(small_config(sequence_len=4))
    with pytest.raises(ConfigError, match="shorten"):
        trunk_function(model, "blocks", compiler="eager")(torch.zeros(1, 41, dtype=torch.long))


def loss_and_gradients(function: LossFunction, model: GPT, length: int = 40) -> list[torch.Tensor]:
    tokens = random_tokens(model.config, 3, length)
    weights = torch.linspace(0.5, 2.0, 3 * (length - 1)).view(3, -1)
    loss = function(tokens[:, :-1], tokens[:, 1:], weights)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checkpointing_gives_the_same_bits(dtype: torch.dtype) -> None:
    model = random_model(small_config(n_layer=4), dtype=dtype)
    kept, again = (
        loss_and_gradients(
            loss_function(model, compiled=False, checkpoint_activations=checkpoints), model
        )
        for checkpoints in (False, True)
    )
    assert all(map(torch.equal, kept, again))


class Kept(TorchDispatchMode):
    """Knows every tensor that an operator has made, and how many bytes of them are still there.

    Views of what the model has had before are not counted.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        before = [*model.parameters(), *model.buffers()]
        self.before = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in before}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self.before:
                    self.storages[reference.cdata] = reference, storage.nbytes()
        return result

    def num_bytes(self) -> int:
        return sum(size for reference, size in self.storages.values() if not reference.expired())


def test_checkpointing_keeps_one_tensor_a_block_for_backward() -> None:
    config = small_config(n_layer=8)
    model = random_model(config)
    tokens = random_tokens(config, 2, 150)
    kept_bytes = []
    for checkpoints in (False, True):
        trunk = trunk_function(model, None, checkpoint_activations=checkpoints)
        with Kept(model) as kept:
            hidden = trunk(tokens)
        kept_bytes.append(kept.num_bytes())
        del hidden
    without, with_checkpoints = kept_bytes
    one = 2 * 150 * config.n_embd * 4
    assert with_checkpoints < (config.n_layer + 10) * one
    assert without > 15 * config.n_layer * one


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scope", ["blocks", "model"])
def test_compiled_training_computes_what_eager_training_does(scope) -> None:  # noqa: ANN001
    config = small_config(n_layer=3, n_head=1, n_kv_head=1)
    model = random_model(config)
    expected = loss_and_gradients(loss_function(model, compiled=False), model, 151)
    compiled = loss_and_gradients(loss_function(model, compiled=True, scope=scope), model, 151)
    torch.testing.assert_close(compiled, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checkpointing_gives_the_same_bits_where_blocks_are_compiled(dtype: torch.dtype) -> None:
    model = random_model(small_config(n_layer=2), dtype=dtype)
    kept, again = (
        loss_and_gradients(
            loss_function(model, compiled=True, checkpoint_activations=checkpoints), model
        )
        for checkpoints in (False, True)
    )
    assert all(map(torch.equal, kept, again))


def cold_compile(depth: int, cache: Path) -> dict[str, float]:
    """What a first step costs a new process with an empty cache."""
    command = [sys.executable, str(COLD_COMPILE), str(depth), str(cache)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    result: dict[str, float] = json.loads(finished.stdout)
    return result


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_six_times_the_depth_takes_at_most_half_as_long_again_to_compile(tmp_path: Path) -> None:
    shallow, deep = (cold_compile(depth, tmp_path / str(depth)) for depth in (2, 12))
    # A third kind of block, whose kernels may all be those of the other two.
    assert deep["graphs"] == shallow["graphs"] + 1
    assert shallow["kernels"] <= deep["kernels"] <= 1.5 * shallow["kernels"]
    assert deep["cpu_seconds"] <= 1.5 * shallow["cpu_seconds"]
