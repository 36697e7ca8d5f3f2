"""Muon for stacks of equally shaped matrices: RECIPE section 2, its seven steps.

Letters: K matrices, R rows, C columns. Sources: Muon (kellerjordan.github.io/posts/muon), Polar
Express (arXiv:2505.16932), NorMuon (arXiv:2510.05491), row equilibration (arXiv:2603.28254),
renormalisation (arXiv:2602.21545), cautious decay (arXiv:2411.16085).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat_core.optim.adamw import Scalar, harmless

# Polar Express, arXiv:2505.16932: optimal quintic for each step, safety 2e-2, cushion 2.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# Singular values must start below 1, also after rounding to bfloat16.
NORM_MARGIN = 1.01
NORM_FLOOR = 1e-6
VARIANCE_FLOOR = 1e-10


class MuonScalars(NamedTuple):
    """The numbers of one update; `lr` holds the factor for the matrices' shape."""

    lr: Scalar
    weight_decay: Scalar
    momentum: Scalar
    one_minus_beta2: Scalar
    grad_scale: Scalar
    healthy: Tensor | None = None


class MuonSettings(NamedTuple):
    """What is constant over a run, and compiled in."""

    polar_express_steps: int
    work_dtype: torch.dtype


def muon_update(
    weight_KRC: Tensor,
    grad_KRC: Tensor,
    momentum_KRC: Tensor,
    second_moment_K: Tensor,
    *,
    scalars: MuonScalars,
    settings: MuonSettings,
) -> None:
    """Update a stack of matrices and its state in place.

    `second_moment_K` has the shape of `second_moment_shape`; both states are float32.
    """
    grad_KRC = harmless(grad_KRC.float() * scalars.grad_scale, momentum_KRC, scalars.healthy)
    update = nesterov(grad_KRC, momentum_KRC, scalars.momentum)
    update = equilibrate_rows(update.to(settings.work_dtype))
    update = orthogonalise(update, settings.polar_express_steps)
    update = rescale(update.to(weight_KRC.dtype))
    update = reduce_variance(update, second_moment_K, scalars.one_minus_beta2)
    apply_cautiously(weight_KRC, update, scalars.lr, scalars.weight_decay)


def second_moment_shape(rows: int, cols: int) -> tuple[int, int]:
    """Shape of one matrix's second moment: one number a row when tall or square, else a column."""
    return (rows, 1) if rows >= cols else (1, cols)


def shape_lr_factor(rows: int, cols: int) -> float:
    """What multiplies the rate of a matrix: a tall one makes its outputs move less per entry."""
    return math.sqrt(max(1.0, rows / cols))


def nesterov(grad_KRC: Tensor, momentum_KRC: Tensor, momentum: Scalar) -> Tensor:
    """Step 1: the momentum moves towards the gradient, which then moves towards the momentum."""
    momentum_KRC.lerp_(grad_KRC, 1 - momentum)
    return grad_KRC.lerp(momentum_KRC, momentum)


def equilibrate_rows(matrix_KRC: Tensor) -> Tensor:
    """Step 3: every row gets the same norm, the matrix keeps its own; norms in float32."""
    matrix = matrix_KRC.float()
    row_norm = matrix.square().sum(dim=-1, keepdim=True).sqrt()
    norm = row_norm.square().sum(dim=-2, keepdim=True).sqrt()
    scale = norm / math.sqrt(matrix.shape[-2]) / row_norm.clamp_min(NORM_FLOOR)
    return (matrix * scale).to(matrix_KRC.dtype)


def orthogonalise(matrix_KRC: Tensor, num_steps: int) -> Tensor:
    """Step 4: bring all singular values near 1 by Polar Express, in the dtype of the input."""
    x_KRC = (matrix_KRC.float() / (NORM_MARGIN * frobenius(matrix_KRC) + NORM_FLOOR)).to(
        matrix_KRC.dtype
    )
    is_tall = x_KRC.shape[-2] > x_KRC.shape[-1]
    for a, b, c in POLAR_EXPRESS[:num_steps]:
        gram = x_KRC.mT @ x_KRC if is_tall else x_KRC @ x_KRC.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        left, right = (x_KRC, polynomial) if is_tall else (polynomial, x_KRC)
        x_KRC = torch.baddbmm(x_KRC, left, right, beta=a)
    return x_KRC


def rescale(matrix_KRC: Tensor) -> Tensor:
    """Step 5: the Frobenius norm of an orthogonal matrix of this shape."""
    target = math.sqrt(min(matrix_KRC.shape[-2:]))
    return matrix_KRC * (target / frobenius(matrix_KRC).clamp_min(NORM_FLOOR))


def reduce_variance(update_KRC: Tensor, second_moment_K: Tensor, one_minus_beta2: Scalar) -> Tensor:
    """Step 6: even out rows (or columns) by their running mean square, the norm unchanged."""
    rows, cols = update_KRC.shape[-2:]
    axis = -1 if rows >= cols else -2
    mean_square = update_KRC.float().square().mean(dim=axis, keepdim=True)
    second_moment_K.lerp_(mean_square, one_minus_beta2)
    scale = second_moment_K.clamp_min(VARIANCE_FLOOR).rsqrt()
    norm = mean_square.sum(dim=(-2, -1), keepdim=True).sqrt()
    new_norm = (mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    # Both norms lack the same factor, sqrt(entries per mean), which the floor has to share.
    floor = VARIANCE_FLOOR / math.sqrt(cols if axis == -1 else rows)
    return update_KRC * (scale * (norm / new_norm.clamp_min(floor))).to(update_KRC.dtype)


def apply_cautiously(
    weight_KRC: Tensor, update_KRC: Tensor, lr: Scalar, weight_decay: Scalar
) -> None:
    """Step 7: decay only entries that the update shrinks too, in place."""
    shrinks = (update_KRC * weight_KRC >= 0).to(weight_KRC.dtype)
    weight_KRC.sub_(lr * update_KRC + (lr * weight_decay) * weight_KRC * shrinks)


def frobenius(matrix_KRC: Tensor) -> Tensor:
    """Frobenius norms in float32, (K, 1, 1)."""
    return matrix_KRC.float().square().sum(dim=(-2, -1), keepdim=True).sqrt()
