"""How many rows fit: the search, its probe and the closed form that it starts from."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from memory_tools import CONFIG, make_model, make_probe, micro_batch

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.counts import Numbers, gradient_copies, training_memory
from nanochat_core.model.gpt import GPT
from nanochat_core.optim.gradient_sum import GradientSum
from nanochat_core.optim.muon_adamw import MuonAdamW
from nanochat_core.optim.recipe import OptimizerRecipe
from nanochat_core.training.compiling import loss_function
from nanochat_core.training.device_batch import (
    CudaMemory,
    Probe,
    fewer_rows,
    is_out_of_memory,
    limit_memory,
    private_data_bytes,
    search_rows,
)
from nanochat_core.training.dial import guess_rows
from nanochat_core.training.groups import build_groups

MEMORY_TOOLS = Path(__file__).with_name("memory_tools.py")
STATIC = 1_000
linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA holds memory on Linux")


def device(per_row: int, room: int, tried: list[int]) -> Callable[[int], int]:
    """A device whose tensors take `per_row` bytes a row beside the static ones."""

    def attempt(rows: int) -> int:
        tried.append(rows)
        peak = STATIC + per_row * rows
        if peak > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return peak

    return attempt


@pytest.mark.parametrize(
    ("guess", "most", "room", "tried", "rows"),
    [
        (4, 32, 2_000, [4, 8], 8),  # 16 would take 2,600
        (32, 32, 2_000, [32, 16, 8], 8),
        (8, 32, 2_000, [8], 8),
        (1, 4, 9_000, [1, 2, 4], 4),
        (64, 4, 9_000, [4], 4),
        (16, 32, 2_650, [16, 8], 8),  # 2,600 fit, but are more than 92 %
        (2, 2, 1_150, [2, 1], 1),  # of one row, 1,100 of 1,150 have to do
    ],
)
def test_the_search_ends_at_the_most_rows_that_fit(
    guess: int, most: int, room: int, tried: list[int], rows: int
) -> None:
    seen: list[int] = []
    attempt = device(100, room, seen)
    choice = search_rows(attempt, guess=guess, most=most, static_bytes=STATIC, limit_bytes=room)
    assert (choice.rows, seen) == (rows, tried)
    assert [each.rows for each in choice.attempts] == tried


def test_one_row_that_does_not_fit_is_told_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"one row does not fit.*activation_checkpointing=true"):
        search_rows(device(100, 50, []), guess=8, most=8, static_bytes=10, limit_bytes=50)


def test_another_error_in_an_attempt_is_not_taken_for_memory() -> None:
    def attempt(rows: int) -> int:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        search_rows(attempt, guess=8, most=8, static_bytes=0, limit_bytes=50)


def test_what_allocators_say_is_recognised() -> None:
    with pytest.raises(RuntimeError) as refusal:
        torch.empty(2**50)
    assert is_out_of_memory(refusal.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as refusal:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(refusal.value)
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(("rows", "fewer"), [(32, 16), (2, 1), (6, 3), (9, 3), (5, 1)])
def test_a_smaller_micro_batch_divides_what_the_larger_one_did(rows: int, fewer: int) -> None:
    assert fewer_rows(rows) == fewer
    assert rows % fewer == 0


@linux
def test_a_probe_leaves_weights_as_they_are_and_no_gradient() -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert make_probe(model, 10**9)(2) > 0
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@linux
def test_a_probe_that_fails_leaves_no_gradient() -> None:
    model = make_model()
    plain = make_probe(model, 10**9)

    def loss_sum(
        inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None, /
    ) -> torch.Tensor:
        loss = plain.loss_function(inputs, targets, weights)
        loss.backward()
        torch.empty(2**50)
        return loss

    probe = Probe(model, loss_sum, micro_batch, 4, plain.memory)
    with pytest.raises(RuntimeError, match="allocate memory"):
        probe(2)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("passes", [1, 2, 3, 4, 7, 8, 16])
def test_copies_of_gradients_are_those_that_their_sum_holds(passes: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    gradients, most = GradientSum([parameter]), 0
    for _ in range(passes):
        parameter.grad = torch.ones(3)
        most = max(most, 1 + len(gradients._stack))
        gradients.add()
    assert gradient_copies(passes) == most


@pytest.mark.parametrize("numbers", ["float32", "bfloat16", "float16"])
def test_weights_moments_and_gradients_are_those_of_the_real_model(numbers: Numbers) -> None:
    model = GPT(CONFIG, getattr(torch, numbers))
    memory = training_memory(CONFIG, numbers=numbers)
    assert memory.weights == memory.gradient
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    model.init_weights(0)
    groups = build_groups(
        model.named_parameters(),
        OptimizerRecipe(),
        batch_lr_scale=1.0,
        width_lr_scale=1.0,
        muon_weight_decay=0.0,
    )
    optimizer = MuonAdamW(groups, Ranks.single())
    moments = sum(shard.tensor.nbytes for shard in optimizer.state_shards())
    # Muon's second moment, one number for each row or column, is left out of the closed form.
    assert memory.moments == pytest.approx(moments, rel=0.01)


@pytest.mark.parametrize(
    ("numbers", "n_kv_head"), [("float32", 2), ("bfloat16", 2), ("float32", 1)]
)
def test_activations_are_about_what_the_real_model_keeps(numbers: Numbers, n_kv_head: int) -> None:
    kept = [kept_bytes(n_layer, numbers, n_kv_head) for n_layer in (2, 6)]
    said = [
        training_memory(shallow(n_layer, n_kv_head), numbers=numbers, compiled=False).row
        for n_layer in (2, 6)
    ]
    # Of four blocks: what is outside of them cancels out.
    assert said[1] - said[0] == pytest.approx(kept[1] - kept[0], rel=0.3)


def shallow(n_layer: int, n_kv_head: int) -> ModelConfig:
    return ModelConfig(
        sequence_len=256,
        vocab_size=128,
        n_layer=n_layer,
        n_head=2,
        n_kv_head=n_kv_head,
        n_embd=128,
        window_pattern="L",
    )


def kept_bytes(n_layer: int, numbers: Numbers, n_kv_head: int) -> int:
    """Bytes that one row's forward pass keeps for backward, weights in any form left out."""
    model = GPT(shallow(n_layer, n_kv_head), getattr(torch, numbers))
    model.init_weights(0)
    weight_shapes = {p.shape for p in model.parameters()}
    weight_shapes |= {shape[::-1] for shape in weight_shapes if len(shape) == 2}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in weight_shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.zeros(1, 256, dtype=torch.int64)
    function = loss_function(model, compiled=False)
    buffers = {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = function(tokens, tokens)
    assert loss.requires_grad
    return sum(
        tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in buffers
    )


def test_the_guess_follows_the_memory_that_is_there() -> None:
    config = ModelConfig(n_layer=12, n_head=6, n_kv_head=6, n_embd=768)
    memory = training_memory(config, numbers="bfloat16")
    guesses = [guess_rows(memory, 256, gigabytes * 10**9) for gigabytes in (1, 6, 12, 24, 80)]
    assert guesses == sorted(guesses)
    assert guesses[0] == 1
    assert guesses[-1] in (32, 64)
    assert guess_rows(memory, 24, 10**15) == 8, "the largest power of two that divides 24"
    checkpointing = training_memory(config, numbers="bfloat16", activation_checkpointing=True)
    assert guess_rows(checkpointing, 256, 12 * 10**9) > guesses[2]
    assert training_memory(config, numbers="bfloat16", ranks=8).static < memory.static


@linux
def test_a_limit_below_what_is_taken_already_is_refused() -> None:
    taken = private_data_bytes()
    with pytest.raises(ConfigError, match=r"before it trains; use \d"):
        limit_memory(taken / 10**9 / 2, torch.device("cpu"))


def test_a_limit_that_nothing_holds_is_said(caplog: pytest.LogCaptureFixture) -> None:
    limit_memory(8.0, torch.device("mps"))
    assert "memory_limit_gb=8 is not held on mps" in caplog.text


@pytest.mark.e2e
@linux
@pytest.mark.parametrize("guess", [1, 16])
def test_the_search_finds_the_same_rows_from_below_and_above_with_real_memory(guess: int) -> None:
    """Eight rows take 0.14 GB, sixteen 0.27; the process may take 0.22 GB more than it has."""
    process = subprocess.run(
        [sys.executable, str(MEMORY_TOOLS), "0.22", str(guess)],
        # glibc gives what is freed back to the system only if it did not come from its heap.
        env={"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(process.stdout)
    assert found["rows"] == 8
    assert found["unchanged"]
    if guess == 16:
        assert found["fitting"] == {"16": False, "8": True}, "sixteen rows really run out"
    else:
        assert found["fitting"] == dict.fromkeys(("1", "2", "4", "8"), True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_search_on_a_gpu_stays_below_its_limit() -> None:
    gpu = torch.device("cuda", 0)
    model = make_model().to(gpu)
    memory = CudaMemory(gpu, 1.0)
    limit_memory(1.0, gpu)
    try:
        static_bytes, limit_bytes = memory.start(), memory.limit()
        assert limit_bytes <= 10**9
        function = loss_function(model, compiled=False)
        probe = Probe(model, function, lambda rows: micro_batch(rows).to(gpu), 1024, memory)
        choice = search_rows(
            probe, guess=4, most=1024, static_bytes=static_bytes, limit_bytes=limit_bytes
        )
        assert 8 <= choice.rows < 1024
        assert memory.start() <= static_bytes, "a probe has left tensors behind"
        with pytest.raises(torch.OutOfMemoryError):
            probe(1024)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
