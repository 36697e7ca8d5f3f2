"""Muon against a plain float64 restatement, and the properties of its single steps."""

import numpy as np
import pytest
import torch
from plain_muon import PlainMuon
from torch import Tensor

from nanochat_core.optim.muon import (
    MuonScalars,
    MuonSettings,
    apply_cautiously,
    equilibrate_rows,
    frobenius,
    muon_update,
    orthogonalise,
    reduce_variance,
    second_moment_shape,
    shape_lr_factor,
)

SHAPES = [(16, 16), (24, 8), (8, 24), (1, 12), (4, 12)]


def run_stack(
    weight: Tensor, grads: list[Tensor], work_dtype: torch.dtype, schedule: list[MuonScalars]
) -> tuple[Tensor, Tensor]:
    rows, cols = weight.shape[1:]
    momentum = torch.zeros(weight.shape)
    second = torch.zeros(len(weight), *second_moment_shape(rows, cols))
    settings = MuonSettings(polar_express_steps=5, work_dtype=work_dtype)
    for grad, scalars in zip(grads, schedule, strict=True):
        scaled = scalars._replace(lr=scalars.lr * shape_lr_factor(rows, cols))
        muon_update(weight, grad, momentum, second, scalars=scaled, settings=settings)
    return weight, momentum


def case(shape: tuple[int, int]) -> tuple[Tensor, list[Tensor], list[MuonScalars]]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(3, *shape, generator=generator) * 0.1
    grads = [torch.randn(3, *shape, generator=generator) * 1e-3 for _ in range(4)]
    schedule = [MuonScalars(0.02 - 0.003 * t, 0.3, 0.85 + 0.03 * t, 0.1, 0.5) for t in range(4)]
    return weight, grads, schedule


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stack_moves_as_each_matrix_would_alone_in_float64(shape: tuple[int, int]) -> None:
    weight, grads, schedule = case(shape)
    plain = [PlainMuon(w.double().numpy()) for w in weight]
    for grad, s in zip(grads, schedule, strict=True):
        for matrix, g in zip(plain, grad, strict=True):
            matrix.step(
                g.double().numpy() * s.grad_scale,
                lr=s.lr,
                mu=s.momentum,
                beta2=1 - s.one_minus_beta2,
                decay=s.weight_decay,
            )
    moved, momentum = run_stack(weight, grads, torch.float32, schedule)
    np.testing.assert_allclose(moved, np.stack([m.weight for m in plain]), rtol=0, atol=2e-5)
    np.testing.assert_allclose(momentum, np.stack([m.momentum for m in plain]), atol=1e-9)


def test_bfloat16_work_moves_weights_nearly_the_same_way() -> None:
    weight, grads, schedule = case((16, 16))
    start = weight.clone()
    exact = run_stack(weight.clone(), grads, torch.float32, schedule)[0] - start
    rough = run_stack(weight.clone(), grads, torch.bfloat16, schedule)[0] - start
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.98


def test_rows_get_one_norm_and_the_matrix_keeps_its_own() -> None:
    matrix = torch.randn(2, 6, 9) * torch.logspace(-3, 2, 6)[:, None]
    level = equilibrate_rows(matrix)
    norms = level.norm(dim=-1)
    torch.testing.assert_close(norms, norms[:, :1].expand_as(norms))
    torch.testing.assert_close(frobenius(level), frobenius(matrix))


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48)])
def test_five_steps_bring_singular_values_near_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalise(torch.randn(2, *shape, generator=generator), 5))
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_a_zero_gradient_moves_nothing_but_makes_no_nan() -> None:
    weight = torch.ones(1, 4, 4)
    scalars = [MuonScalars(0.1, 0.0, 0.9, 0.1, 1.0)]
    moved, _ = run_stack(weight, [torch.zeros(1, 4, 4)], torch.float32, scalars)
    assert torch.equal(moved, torch.ones(1, 4, 4))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_evening_out_keeps_the_norm(shape: tuple[int, int]) -> None:
    update = torch.randn(2, *shape)
    second = torch.rand(2, *second_moment_shape(*shape))
    torch.testing.assert_close(
        frobenius(reduce_variance(update, second, 0.1)), frobenius(update), rtol=1e-5, atol=0
    )


def test_decay_acts_only_where_the_update_shrinks_the_weight_too() -> None:
    weight = torch.tensor([[[2.0, -2.0, 2.0, 2.0]]])
    update = torch.tensor([[[1.0, 1.0, -1.0, 0.0]]])
    apply_cautiously(weight, update, 0.1, 0.5)
    assert weight.flatten().tolist() == pytest.approx([2 - 0.1 - 0.1, -2.1, 2.1, 2 - 0.1])


def test_only_tall_matrices_get_a_larger_rate() -> None:
    assert shape_lr_factor(512, 128) == 2.0
    assert shape_lr_factor(128, 512) == 1.0
