"""Training in fp8: close to float32, invisible outside of training.

A CPU computes the same formats as a GPU, slowly. It takes factors in any layout, so the layouts are
checked with PyTorch's own description of the CUDA kernel, on tensors that have no memory.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import random_model, random_tokens, small_config
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError
from nanochat_core.jobs import pretrain
from nanochat_core.jobs.common import StopRequest
from nanochat_core.model import fp8
from nanochat_core.model import loss as loss_module
from nanochat_core.model.fp8 import check_fp8, fp8_linear
from nanochat_core.model.gpt import GPT
from nanochat_core.model.layers import Linear
from nanochat_core.model.loss import row_losses, summed_loss
from tests.jobs.job_tools import PRETRAIN, make_line, make_spec

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WIDE = {"n_embd": 128, "vocab_size": 200, "sequence_len": 32}
# Both warnings are given by torch itself, about itself.
compiling = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated",
    "ignore:.*Function'> should not be instantiated",
)


def factors(tokens: int = 48, size_in: int = 128, size_out: int = 256) -> list[torch.Tensor]:
    """Activations (2, tokens / 2, I), a weight (O, I) and a gradient (2, tokens / 2, O)."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, tokens // 2, size_in), (size_out, size_in), (2, tokens // 2, size_out)]
    x, weight, grad = (torch.randn(shape, generator=generator) for shape in shapes)
    return [x.bfloat16().requires_grad_(), weight.requires_grad_(), (grad * 1e-6).bfloat16()]


def product_and_gradients(
    multiply: Product, x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor
) -> list[torch.Tensor]:
    y = multiply(x, weight)
    return [y.detach(), *torch.autograd.grad(y, [x, weight], grad)]


def in_float32(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.float() @ weight.t()


def relative_error(given: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((given.float() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("tokens", [48, 46, 2], ids=["aligned", "padded", "one each"])
def test_the_three_products_are_those_of_float32_within_the_digits_of_fp8(tokens: int) -> None:
    x, weight, grad = factors(tokens)
    given = product_and_gradients(fp8_linear, x, weight, grad)
    wanted = product_and_gradients(in_float32, x, weight, grad.float())
    assert [tensor.shape for tensor in given] == [tensor.shape for tensor in wanted]
    assert [tensor.dtype for tensor in given] == [torch.bfloat16, torch.bfloat16, torch.float32]
    # Rounding to 3 binary digits (e4m3) is off by 2^-4 at most and about 2.7 % on average; to 2
    # (e5m2) by twice that. A product adds the squares of its two factors' errors.
    errors = [relative_error(a, b) for a, b in zip(given, wanted, strict=True)]
    assert 0.02 < errors[0] < 0.05
    assert all(0.03 < error < 0.08 for error in errors[1:])


@pytest.mark.gpu
@compiling
def test_the_products_on_a_gpu_are_those_on_the_cpu() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < fp8.MIN_CUDA_FP8:
        pytest.skip("no CUDA device with fp8")
    for tokens in (48, 46):
        x, weight, grad = factors(tokens)
        expected = product_and_gradients(fp8_linear, x, weight, grad)
        on_gpu = [tensor.detach().cuda().requires_grad_() for tensor in (x, weight)]
        for multiply in (fp8_linear, torch.compile(fp8_linear, dynamic=False, fullgraph=True)):
            given = product_and_gradients(multiply, *on_gpu, grad.cuda())
            errors = [
                relative_error(a.cpu(), b.float()) for a, b in zip(given, expected, strict=True)
            ]
            assert max(errors) < 0.01


def test_tokens_padded_with_zeros_change_nothing() -> None:
    x, weight, grad = factors(46)
    given = product_and_gradients(fp8_linear, x, weight, grad)
    x_32, grad_32 = torch.zeros(64, 128).bfloat16(), torch.zeros(64, 256).bfloat16()
    x_32[:46], grad_32[:46] = x.detach().flatten(0, 1), grad.flatten(0, 1)
    wanted = product_and_gradients(fp8_linear, x_32.requires_grad_(), weight, grad_32)
    torch.testing.assert_close(given[0].flatten(0, 1), wanted[0][:46], rtol=0, atol=0)
    torch.testing.assert_close(given[1].flatten(0, 1), wanted[1][:46], rtol=0, atol=0)
    torch.testing.assert_close(given[2], wanted[2])


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_numbers_far_outside_of_fp8_are_scaled_into_it(scale: float) -> None:
    x, weight, grad = factors()
    small = product_and_gradients(fp8_linear, x, weight, grad)
    scaled = (x.detach() * scale).requires_grad_()
    y, grad_x, grad_weight = product_and_gradients(fp8_linear, scaled, weight, grad)
    assert relative_error(y / scale, small[0].float()) < 0.02
    assert relative_error(grad_x, small[1].float()) < 0.02
    assert relative_error(grad_weight / scale, small[2]) < 0.02


@pytest.mark.parametrize("empty", [0, 1, 2], ids=["activations", "weight", "gradient"])
def test_a_tensor_of_zeros_gives_zeros(empty: int) -> None:
    tensors = factors()
    with torch.no_grad():
        tensors[empty].zero_()
    y, grad_x, grad_weight = product_and_gradients(fp8_linear, *tensors)
    assert [bool(t.any()) for t in (y, grad_x, grad_weight)] == [
        empty == 2,
        empty == 0,
        empty == 1,
    ]
    assert all(bool(t.isfinite().all()) for t in (y, grad_x, grad_weight))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    x, weight, grad = factors()
    with torch.no_grad():
        x[0, 3, 5] = bad
    assert not fp8_linear(x, weight)[0, 3].isfinite().any()
    x, weight, grad = factors()
    grad[1, 2, 7] = bad
    _, grad_x, grad_weight = product_and_gradients(fp8_linear, x, weight, grad)
    assert not grad_x[1, 2].isfinite().any()
    assert not grad_weight[7].isfinite().any()


class CudaRules(TorchDispatchMode):
    """Shows every fp8 product of a CPU to PyTorch's description of the CUDA kernel first.

    That description is what tensors without memory ("meta") are checked with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[torch.dtype, torch.dtype, torch.dtype, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func == torch.ops.aten._scaled_mm.default:
            func(*[a.to("meta") if isinstance(a, torch.Tensor) else a for a in args], **kwargs)
            is_fast = bool(args[7]) if len(args) > 7 else kwargs.get("use_fast_accum", False)
            self.products.append((args[0].dtype, args[1].dtype, result.dtype, is_fast))
        return result


@pytest.mark.parametrize("tokens", [48, 46])
def test_the_factors_have_the_formats_layouts_and_sizes_that_cuda_takes(tokens: int) -> None:
    x, weight, grad = factors(tokens)
    by_columns = [tensor.detach().flatten(0, -2).t().contiguous().t() for tensor in (x, grad)]
    with CudaRules() as rules:
        product_and_gradients(fp8_linear, x, weight, grad)
        product_and_gradients(fp8_linear, by_columns[0].requires_grad_(), weight, by_columns[1])
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    each = [
        (e4m3, e4m3, torch.bfloat16, True),
        (e5m2, e4m3, torch.bfloat16, False),
        (e5m2, e4m3, torch.float32, False),
    ]
    assert rules.products == 2 * each


def test_the_check_of_layouts_and_sizes_can_fail() -> None:
    by_rows, one = torch.zeros(128, 128).to(torch.float8_e4m3fn), torch.ones(())
    for second, complaint in [(by_rows, "col_major"), (by_rows[:120].t(), "divisible by 16")]:
        with CudaRules(), pytest.raises(RuntimeError, match=complaint):
            torch._scaled_mm(by_rows, second, one, one, out_dtype=torch.bfloat16)


def fp8_and_bfloat16(**changes) -> tuple[GPT, GPT]:
    """The same model twice, the first one in fp8 training."""
    config = small_config(**{**WIDE, **changes})
    first, second = (random_model(config, dtype=torch.bfloat16) for _ in range(2))
    first.use_fp8_training()
    return first, second


def test_linears_are_multiplied_in_fp8_if_both_sizes_are_large_multiples_of_16() -> None:
    model, _ = fp8_and_bfloat16(n_embd=160)
    chosen = {name for name, module in model.named_modules() if getattr(module, "fp8", False)}
    linears = {name for name, module in model.named_modules() if isinstance(module, Linear)}
    gates = {name for name in linears if name.endswith("_gate")}
    assert gates
    assert chosen == linears - gates
    assert "lm_head" in chosen
    for size, fits in [(128, True), (144, True), (136, False), (112, False)]:
        assert fp8.fits_fp8(size, 256) == fp8.fits_fp8(256, size) == fits


def test_fp8_leaves_parameters_and_state_dict_as_they_are() -> None:
    model, plain = fp8_and_bfloat16()
    state, plain_state = model.state_dict(), plain.state_dict()
    assert list(state) == list(plain_state)
    assert all(torch.equal(state[name], plain_state[name]) for name in state)
    assert model.lm_head.weight.dtype == torch.float32


def test_outside_of_training_the_model_is_exactly_that_in_bfloat16() -> None:
    model, plain = fp8_and_bfloat16()
    tokens = random_tokens(model.config, 2, 33)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    assert not torch.equal(model(inputs, targets), plain(inputs, targets))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(model(inputs), plain(inputs))
            assert torch.equal(model(inputs, targets), plain(inputs, targets))


def losses_of_training(model: GPT, tokens: torch.Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_the_loss_falls_as_in_bfloat16() -> None:
    config = small_config(**WIDE)
    tokens = random_tokens(config, 2, 33)
    curves = []
    for use_fp8 in (True, False):
        model = GPT(config, torch.bfloat16)
        model.init_weights(0)
        if use_fp8:
            model.use_fp8_training()
        curves.append(losses_of_training(model, tokens, steps=10))
    ours, wanted = curves
    assert ours != wanted
    assert wanted[0] - wanted[-1] > 0.5
    assert ours == pytest.approx(wanted, abs=0.05)


def test_a_cpu_says_that_fp8_is_slow_there(caplog: pytest.LogCaptureFixture) -> None:
    check_fp8(torch.device("cpu"), torch.bfloat16)
    assert "emulated on a CPU" in caplog.text


def test_a_device_without_fp8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"type mps.*Set fp8=False"):
        check_fp8(torch.device("mps"), torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    for capability in [(8, 0), (8, 6), (7, 5)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        with pytest.raises(ConfigError, match=r"Some GPU with .* {}\.{},".format(*capability)):
            check_fp8(torch.device("cuda"), torch.bfloat16)
    for capability in [(8, 9), (9, 0), (10, 0), (12, 0)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        check_fp8(torch.device("cuda"), torch.bfloat16)


def test_other_activations_than_bfloat16_are_refused() -> None:
    for dtype in (torch.float32, torch.float16):
        with pytest.raises(ConfigError, match="compute_dtype=bfloat16"):
            GPT(small_config(**WIDE), dtype).use_fp8_training()


def test_a_model_without_a_large_matrix_is_refused() -> None:
    with pytest.raises(ConfigError, match="width 32"):
        GPT(small_config(), torch.bfloat16).use_fp8_training()


def test_a_pretraining_job_with_fp8_is_refused_before_it_trains_what_fp8_cannot(
    tmp_path: Path,
) -> None:
    line = make_line(tmp_path / "line")
    recipe = PRETRAIN.model_copy(update={"fp8": True})
    spec = make_spec(recipe, line, tmp_path, station="pretrain")
    with pytest.raises(ConfigError, match=r"width 32.*set fp8=False"):
        pretrain.main(spec, Ranks.single(), StopRequest())
    assert not any(tmp_path.glob("work/*"))


@pytest.mark.distributed  # by its time: it traces a whole model
@compiling
def test_the_model_is_traced_as_one_graph() -> None:
    model, _ = fp8_and_bfloat16(n_layer=1)
    tokens = random_tokens(model.config, 2, 33)

    def loss_and_gradients(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        value = function(tokens[:, :-1], tokens[:, 1:], reduction="sum")
        return [value.detach(), *torch.autograd.grad(value, list(model.parameters()))]

    traced = torch.compile(model, backend="aot_eager", dynamic=False, fullgraph=True)
    torch.testing.assert_close(loss_and_gradients(traced), loss_and_gradients(model))


@pytest.mark.e2e  # by its time: it traces a block
@compiling
def test_no_tensor_is_searched_for_its_largest_magnitude_twice() -> None:
    model, _ = fp8_and_bfloat16(n_layer=1)
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition
    )
    hidden = torch.compile(model.hidden, backend=backend, dynamic=False, fullgraph=True)
    hidden(random_tokens(model.config, 2, 32)).sum().backward()
    amax, product = torch.ops.aten.amax.default, torch.ops.aten._scaled_mm.default
    counts = [
        [sum(node.target == kind for node in graph.graph.nodes) for kind in (amax, product)]
        for graph in graphs
    ]
    # Six Linears. Forward: six weights, and four inputs, as q, k and v share one. Backward: the
    # gradients of six outputs; what forward made fp8 is kept.
    assert counts == [[6 + 4, 6], [6, 12]]


def head_problem() -> tuple[torch.Tensor, Linear, torch.Tensor, torch.Tensor]:
    x, weight, _ = factors(46, size_out=320)
    head = Linear(*reversed(weight.shape))
    head.weight = torch.nn.Parameter(weight.detach() * 0.3)
    generator = torch.Generator().manual_seed(4)
    targets = torch.randint(300, (46,), generator=generator)
    targets[5] = -1
    return x.detach().flatten(0, 1).requires_grad_(), head, targets, torch.linspace(-2, 3, 46)


@pytest.mark.parametrize("function", ["summed_loss", "row_losses"])
def test_the_head_in_chunks_is_multiplied_in_fp8(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 16 * 320)
    x, head, targets, weights = head_problem()

    def gradients() -> list[torch.Tensor]:
        if function == "summed_loss":
            loss = summed_loss(x, head, targets, weights, vocab_size=300, compiled=False)
        else:
            loss = (row_losses(x, head, targets, vocab_size=300) * weights).sum()
        return list(torch.autograd.grad(loss * 1e-6, [x, head.weight]))

    wanted = gradients()
    head.fp8 = True
    with CudaRules() as rules:
        given = gradients()
    assert [t.dtype for t in given] == [torch.bfloat16, torch.float32]
    assert all(
        0.02 < relative_error(a, b.float()) < 0.1 for a, b in zip(given, wanted, strict=True)
    )
    assert not given[1][300:].any()
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    forward = (e4m3, e4m3, torch.bfloat16, True)
    backward = [(e5m2, e4m3, torch.bfloat16, False), (e5m2, e4m3, torch.float32, False)]
    again = 3 * [forward] if function == "row_losses" else []
    assert rules.products == again + 3 * [forward, *backward]


def test_the_gradient_of_the_head_has_a_scale_without_a_look_at_it() -> None:
    x, head, targets, weights = head_problem()
    head.fp8 = True
    with Largest() as largest:
        summed_loss(x, head, targets, weights, vocab_size=300, compiled=False)
    assert largest.shapes == [(48, 128), (320, 128), (48,)]


class Largest(TorchDispatchMode):
    """Shapes of the tensors whose largest element was looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        if func == torch.ops.aten.amax.default:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.long
@compiling
@pytest.mark.parametrize("tokens", [48, 46])
def test_compiled_products_are_those_of_eager_ones(tokens: int) -> None:
    compiled = torch.compile(fp8_linear, dynamic=False, fullgraph=True)
    given = product_and_gradients(compiled, *factors(tokens))
    torch.testing.assert_close(given, product_and_gradients(fp8_linear, *factors(tokens)))
