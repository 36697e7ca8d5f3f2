"""The chunked loss of the head against PyTorch's cross entropy of whole logits."""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat_core.model import loss as loss_module
from nanochat_core.model.layers import Linear
from nanochat_core.model.loss import How, chunk_rows, row_losses, summed_loss

# By torch itself, about itself.
compiling = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
LIMITS = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-3, 8e-3), torch.float16: (1e-4, 1e-3)}
"""Relative errors of the loss and of its gradients: float32's is demanded, and 16-bit formats are
off by 2^-9 and 2^-12 a rounding, of which a gradient has a few."""


@dataclass(frozen=True)
class Problem:
    """The arguments of a loss; targets of the first row of every seven are left out."""

    x: torch.Tensor
    head: Linear
    targets: torch.Tensor
    weights: torch.Tensor | None
    vocab_size: int

    def loss(self, *, compiled: bool = False) -> torch.Tensor:
        arguments = (self.x, self.head, self.targets, self.weights)
        return summed_loss(*arguments, vocab_size=self.vocab_size, compiled=compiled)

    def rows(self) -> torch.Tensor:
        return row_losses(self.x, self.head, self.targets, vocab_size=self.vocab_size)

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, [self.x, self.head.weight]))


def make_problem(
    rows: int = 100,
    vocab_size: int = 70,
    channels: int = 32,
    *,
    dtype: torch.dtype = torch.float32,
    weighted: bool = True,
) -> Problem:
    generator = torch.Generator().manual_seed(rows + vocab_size)
    head = Linear(channels, -(-vocab_size // 64) * 64)
    # Raw logits of spread 11, far into the bend of a cap at 15.
    torch.nn.init.normal_(head.weight, std=2.0, generator=generator)
    targets = torch.randint(vocab_size, (rows,), generator=generator)
    targets[::7] = -1
    x = torch.randn(rows, channels, generator=generator).to(dtype).requires_grad_()
    weights = torch.randn(rows, generator=generator) if weighted else None
    return Problem(x, head, targets, weights, vocab_size)


def plain_rows(problem: Problem) -> torch.Tensor:
    """Losses by row in float64, of logits that are all there."""
    logits = (problem.x.double() @ problem.head.weight.double().t())[:, : problem.vocab_size]
    capped = 15 * torch.tanh(logits / 15)
    return F.cross_entropy(capped, problem.targets, ignore_index=-1, reduction="none")


def plain_loss(problem: Problem) -> torch.Tensor:
    losses = plain_rows(problem)
    return (losses if problem.weights is None else losses * problem.weights).sum()


def error(given: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((given.double() - wanted).norm() / wanted.norm()).item()


def small_chunks(monkeypatch: pytest.MonkeyPatch, problem: Problem, rows: int) -> None:
    columns = problem.head.weight.size(0)
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", rows * columns)


def check(problem: Problem, *, compiled: bool = False) -> None:
    """Loss and gradients, times something as training does, are those of the plain form."""
    loss, wanted = problem.loss(compiled=compiled), plain_loss(problem)
    of_loss, of_gradients = LIMITS[problem.x.dtype]
    assert loss.dtype == torch.float32
    # A weighted sum of both signs may be small; its error is measured against its parts.
    size = plain_rows(problem) if problem.weights is None else plain_rows(problem) * problem.weights
    assert abs(loss.item() - wanted.item()) < of_loss * size.abs().sum().item()
    pairs = zip(problem.gradients(loss * 0.01), problem.gradients(wanted * 0.01), strict=True)
    assert all(error(given, plain) < of_gradients for given, plain in pairs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("rows", "vocab_size", "chunk"),
    [(96, 64, 32), (100, 70, 32), (5, 70, 32), (1, 129, 16), (48, 128, 48)],
    ids=["even", "padded, last chunk short", "less than a chunk", "one row", "one chunk"],
)
def test_loss_and_gradients_are_those_of_cross_entropy(
    rows: int, vocab_size: int, chunk: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(max(rows, 2), vocab_size, weighted=weighted)
    small_chunks(monkeypatch, problem, chunk)
    check(problem)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_costs_its_own_rounding(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(dtype=dtype)
    small_chunks(monkeypatch, problem, 32)
    check(problem)
    assert [g.dtype for g in problem.gradients(problem.loss())] == [dtype, torch.float32]


@pytest.mark.e2e  # by its time: two kernels are compiled
@compiling
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_is_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(dtype=dtype)
    small_chunks(monkeypatch, problem, 32)
    check(problem, compiled=True)
    with torch.no_grad():
        eager, compiled = problem.loss(), problem.loss(compiled=True)
    torch.testing.assert_close(compiled, eager)


def test_the_padding_of_the_vocabulary_has_no_part() -> None:
    problem = make_problem(vocab_size=70)
    before = problem.loss()
    with torch.no_grad():
        problem.head.weight[70:] = 1e3
    loss = problem.loss()
    _, of_weight = problem.gradients(loss)
    assert torch.equal(loss, before)
    assert of_weight[:70].any(dim=1).all()
    assert not of_weight[70:].any()


def test_rows_without_a_target_count_nothing() -> None:
    problem = make_problem()
    kept = problem.targets != -1
    some = replace(
        problem,
        x=problem.x.detach()[kept].requires_grad_(),
        targets=problem.targets[kept],
        weights=problem.weights[kept],
    )
    torch.testing.assert_close(problem.loss(), some.loss())
    of_x, of_weight = problem.gradients(problem.loss())
    assert not of_x[~kept].any()
    torch.testing.assert_close(of_weight, some.gradients(some.loss())[1])


def test_no_target_at_all_is_a_loss_of_zero() -> None:
    problem = make_problem()
    problem.targets.fill_(-1)
    loss = problem.loss()
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in problem.gradients(loss))
    assert not problem.rows().any()


def test_row_losses_are_those_of_cross_entropy_with_a_gradient_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = make_problem()
    small_chunks(monkeypatch, problem, 32)
    rows, wanted = problem.rows(), plain_rows(problem)
    torch.testing.assert_close(rows, wanted.float(), rtol=1e-6, atol=1e-6)
    pairs = zip(
        problem.gradients((rows * problem.weights).sum()),
        problem.gradients((wanted * problem.weights).sum()),
        strict=True,
    )
    assert all(error(given, plain) < 1e-5 for given, plain in pairs)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_only_the_loss_is_computed(mode: type) -> None:
    problem = make_problem()
    with mode(), Sizes() as sizes:
        loss = problem.loss()
        rows = problem.rows()
    weight = tuple(problem.head.weight.shape)
    assert ("aten.mm.out", weight) not in sizes.seen
    assert not any("addmm" in name for name, _ in sizes.seen)
    torch.testing.assert_close(loss, problem.loss().detach())
    torch.testing.assert_close(rows, problem.rows().detach())


class Sizes(TorchDispatchMode):
    """Names and shapes of results of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, tuple[int, ...]]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen.add((str(func), tuple(result.shape)))
        return result


@pytest.mark.parametrize("function", ["loss", "rows"])
def test_logits_are_never_held_whole(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(rows=96, vocab_size=640, channels=16)
    small_chunks(monkeypatch, problem, 16)
    with Sizes() as sizes:
        problem.gradients(getattr(problem, function)().sum())
    shapes = [shape for _, shape in sizes.seen]
    assert (16, 640) in shapes
    assert max(shape[0] for shape in shapes if shape[1:] == (640,)) == 16


@pytest.mark.parametrize("factor", [2.0**24, 2.0**-24])
def test_a_factor_beyond_float16_reaches_the_gradients_unrounded(factor: float) -> None:
    problem = make_problem(dtype=torch.float16, weighted=False)
    loss = problem.loss()
    plain_x, plain_weight = torch.autograd.grad(
        loss, [problem.x, problem.head.weight], retain_graph=True
    )
    of_x, of_weight = problem.gradients(loss * factor)
    assert torch.equal(of_x, (plain_x.float() * factor).half())
    assert torch.equal(of_weight, plain_weight * factor)


def test_backward_twice_gives_the_same() -> None:
    problem = make_problem()
    loss = problem.loss()
    parameters = [problem.x, problem.head.weight]
    first = torch.autograd.grad(loss * 2, parameters, retain_graph=True)
    second = torch.autograd.grad(loss * 2, parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_is_not_finite_is_not_hidden() -> None:
    problem = make_problem()
    with torch.no_grad():
        problem.x[3, 5] = torch.nan
    loss = problem.loss()
    of_x, of_weight = problem.gradients(loss)
    assert loss.isnan()
    assert of_x[3].isnan().all()
    assert of_weight[: problem.vocab_size].isnan().all()


def test_chunks_fit_and_are_alike_where_the_rows_allow_it() -> None:
    most = {"cpu": {2048: 1024, 32768: 64}, "cuda": {2048: 32768, 32768: 2048}}
    for device, vocab_size, rows, compiled in itertools.product(
        ("cpu", "cuda"), (2048, 32768), (1, 2047, 2048, 16384, 65536, 3 * 2048), (False, True)
    ):
        how = How(vocab_size, compiled, fp8=False)
        chunk = chunk_rows(rows, vocab_size, torch.float32, device, how)
        assert chunk % 16 == 0
        assert chunk <= most[device][vocab_size]
        assert rows % 16 or rows % chunk == 0
    how = How(32768, compiled=True, fp8=False)
    assert chunk_rows(65536, 32768, torch.bfloat16, "cuda", how) == 4096
